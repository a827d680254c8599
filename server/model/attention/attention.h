// The attention of one layer: what moves information between positions. The kinds are files beside this one.
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

  // Sets `out` to what attention makes of its input `h`, both (B * T, width). A row depends on rows of its own sequence
  // at its position and before only. Returns whether the last hook point of the pass was tapped, after which `out`
  // means nothing.
  virtual bool Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const = 0;
};

// The attention of layer `layer` of `config`, with its hook points added to `hook_points` as `attn.*`.
std::unique_ptr<Attention> MakeAttention(const DecoderConfig& config, int layer, AttentionWeights weights,
                                         HookPointList& hook_points);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_ATTENTION_H_
