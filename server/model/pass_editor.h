// Takes part in a forward pass beyond recording it: replaces rows, lets the batch grow between blocks, receives what
// the logits are computed from, and lets a pass end early and another one go on in its place.
#ifndef HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_
#define HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/model/forward_pass.h"
#include "server/model/taps.h"
#include "server/model/unembedding.h"

namespace hookline {

// The state of a pass of B sequences of T tokens before a layer: all that the pass needs from there on. Nothing writes
// to its tensors.
struct PassState {
  int layer = -1;                     // as in PassEditor::Fork
  at::Tensor token_ids;               // (B, T)
  std::vector<int64_t> lengths;       // of the sequences; empty: all T
  at::Tensor per_layer;               // ForwardPass::per_layer
  std::vector<KeysAndValues> shared;  // ForwardPass::shared

  // Rows (B * T, width), each undefined until it is computed and where no later layer reads it.
  at::Tensor x;       // the residual stream
  at::Tensor x0;      // what the embedding gave
  at::Tensor bigram;  // embeddings of pairs of tokens
  at::Tensor kept;    // the middle block's output
};

class PassEditor {
 public:
  virtual ~PassEditor() = default;

  // The hook points at which Replace is called, ascending; none before the layer where the pass begins.
  virtual absl::Span<const int> hook_points() const = 0;
  virtual PassEnd end() const = 0;

  // The state from which the pass goes on, which Keep was given in an earlier one; null: it begins at the beginning.
  virtual const PassState* begin() const { return nullptr; }
  // Returns whether Keep is to be called before this layer.
  virtual bool Keeps(int /*layer*/) const { return false; }
  // Receives the state before Fork of the same layer.
  virtual void Keep(PassState state) = 0;

  // Called before the embedding (`layer` -1), before each block, and before the last norm (the number of layers).
  // Returns the sequences with which the pass goes on, as indices into its batch up to now; empty: it stays as it is.
  virtual std::vector<int64_t> Fork(int layer) = 0;

  // Like Taps::Visit, returns rows (batch * positions, width) to go on with, or an undefined tensor.
  virtual at::Tensor Replace(int hook_point, const at::Tensor& rows) = 0;

  // Called last where end() is kLogits: `rows` (batch * positions, width) are the unembedding's input.
  virtual void Finish(const at::Tensor& rows, const Unembedding& unembedding) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_
