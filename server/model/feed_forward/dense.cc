#include "server/model/feed_forward/dense.h"

#include <utility>

#include "server/model/layers.h"

namespace hookline {

Dense::Dense(const DenseConfig& config, DenseWeights weights, HookPointList& hook_points)
    : config_(config), weights_(std::move(weights)) {
  pre_hook_ = hook_points.Add("mlp.hook_pre", config.width,
                              config.gated ? "The MLP's gate projection, before the activation function."
                                           : "The MLP's hidden layer, before the activation function.");
  if (config.gated) {
    pre_linear_hook_ =
        hook_points.Add("mlp.hook_pre_linear", config.width, "The MLP's up projection, which the gate multiplies.");
  }
  post_hook_ = hook_points.Add("mlp.hook_post", config.width,
                               config.gated ? "The activation function of the gate, times the up projection."
                                            : "The MLP's hidden layer, after the activation function.");
}

bool Dense::Run(const at::Tensor& h, Taps& taps, at::Tensor* out) const {
  at::Tensor hidden;  // (rows, M)
  if (config_.gated) {
    at::Tensor pre;
    // If the pass ends at the up projection, the gate is not computed.
    if (taps.Need({pre_hook_}, post_hook_)) {
      pre = Linear(h, weights_.gate);
      if (taps(pre_hook_, pre)) return true;
    }
    at::Tensor linear = Linear(h, weights_.up);
    if (taps(pre_linear_hook_, linear)) return true;
    hidden = Activate(pre, config_.activation).mul_(linear);
  } else {
    at::Tensor pre = Linear(h, weights_.up);
    if (taps(pre_hook_, pre)) return true;
    hidden = Activate(pre, config_.activation);
  }
  if (taps(post_hook_, hidden)) return true;
  *out = Linear(hidden, weights_.down);
  return false;
}

}  // namespace hookline
