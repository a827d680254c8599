// A multilayer perceptron with one hidden layer of M values.
//
//   plain:  down(act(up(h)))                   hook_pre (M) = up(h), hook_post (M) = act(pre)
//   gated:  down(act(gate(h)) * up(h))         hook_pre = gate(h), hook_pre_linear = up(h), hook_post = their product
#ifndef HOOKLINE_SERVER_MODEL_FEED_FORWARD_DENSE_H_
#define HOOKLINE_SERVER_MODEL_FEED_FORWARD_DENSE_H_

#include "server/model/feed_forward/feed_forward.h"

namespace hookline {

class Dense : public FeedForward {
 public:
  Dense(const DenseConfig& config, DenseWeights weights, HookPointList& hook_points);

  bool Run(const at::Tensor& h, Taps& taps, at::Tensor* out) const override;

 private:
  const DenseConfig config_;
  const DenseWeights weights_;
  int pre_hook_ = kNoHookPoint, pre_linear_hook_ = kNoHookPoint, post_hook_ = kNoHookPoint;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FEED_FORWARD_DENSE_H_
