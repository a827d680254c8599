// The state that the layers of one forward pass share.
#ifndef HOOKLINE_SERVER_MODEL_FORWARD_PASS_H_
#define HOOKLINE_SERVER_MODEL_FORWARD_PASS_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "server/model/attention/attend.h"
#include "server/model/rotary.h"
#include "server/model/taps.h"

namespace hookline {

// Keys and values as attention uses them, (batch, positions, key_value_heads, head_width).
struct KeysAndValues {
  at::Tensor keys;
  at::Tensor values;
};

// B sequences of T tokens, padded on the right. Rows are (B * T, width) throughout, sequence by sequence.
struct ForwardPass {
  int64_t batch() const { return token_ids.size(0); }
  int64_t positions() const { return token_ids.size(1); }

  at::Tensor token_ids;        // (B, T)
  const at::ScalarType dtype;  // the model's
  const Rotary& rotary;        // of this pass
  CausalMasks& masks;
  Taps& taps;
  at::Tensor per_layer;               // (B * T, layers, part), the embeddings per layer; undefined if there are none
  std::vector<KeysAndValues> shared;  // by layer, for the layers that later ones read
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FORWARD_PASS_H_
