// The attention of one layer: the part that moves information between positions. Each kind has its file
// beside this one.
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_ATTENTION_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_ATTENTION_H_

#include <ATen/ATen.h>

#include <memory>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/forward_pass.h"
#include "server/model/hook_point_list.h"

namespace hookline {

class Attention {
 public:
  virtual ~Attention() = default;

  // Sets `out` to the attention output for the input `h`, both (B * T, width). A row depends only on the rows
  // of its own sequence up to its position. Returns true if the last hook point of the pass was tapped; `out`
  // is then undefined.
  virtual bool Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const = 0;
};

// Makes the attention of layer `layer` of `config` and adds its hook points to `hook_points` as `attn.*`.
std::unique_ptr<Attention> MakeAttention(const DecoderConfig& config, int layer, AttentionWeights weights,
                                         HookPointList& hook_points);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_ATTENTION_H_
