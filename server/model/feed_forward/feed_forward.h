// The feed-forward part of one layer, which treats each row separately. Each kind has its file beside this one.
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

  // Sets `out` to the layer's output for the input `h`, both (rows, width); a row depends only on the same row of `h`.
  // Returns true if the last hook point of the pass was tapped; `out` is then undefined.
  virtual bool Run(const at::Tensor& h, Taps& taps, at::Tensor* out) const = 0;
};

// Makes the feed-forward part that `config` describes and adds its hook points to `hook_points` as `mlp.*`.
std::unique_ptr<FeedForward> MakeFeedForward(const FeedForwardConfig& config, FeedForwardWeights weights,
                                             HookPointList& hook_points);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FEED_FORWARD_FEED_FORWARD_H_
