// The feed-forward part of one layer, which works on each row alone. The kinds are files beside this one.
#ifndef HOOKLINE_SERVER_MODEL_FEED_FORWARD_FEED_FORWARD_H_
#define HOOKLINE_SERVER_MODEL_FEED_FORWARD_FEED_FORWARD_H_

#include <ATen/ATen.h>

#include <memory>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/hook_point_list.h"
#include "server/model/taps.h"

namespace hookline {

class FeedForward {
 public:
  virtual ~FeedForward() = default;

  // Sets `out` to what the layer makes of its input `h`, both (rows, width); a row depends on its own row only. Returns
  // whether the last hook point of the pass was tapped, after which `out` means nothing.
  virtual bool Run(const at::Tensor& h, Taps& taps, at::Tensor* out) const = 0;
};

// The feed-forward part that `config` describes, with its hook points added to `hook_points` as `mlp.*`.
std::unique_ptr<FeedForward> MakeFeedForward(const FeedForwardConfig& config, FeedForwardWeights weights,
                                             HookPointList& hook_points);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FEED_FORWARD_FEED_FORWARD_H_
