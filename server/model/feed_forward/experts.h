// A mixture of E experts, each a gated MLP. Every row passes through the k experts that its router chooses.
//
//   logits = h Wr (+ b)                                      hook_router_logits (E)
//   scores, weights of all experts                           ExpertsConfig::Routing
//   the k largest scores, falling                            hook_expert_indices (k), as float32
//   their weights                                            hook_expert_weights (k)
//   out = sum over the chosen of weight expert(h) (+ shared expert(h), gated or not)
//   expert(h) = down(act(gate(h)) * up(h))
// Rows are sorted by expert, so that each expert's matrices are used once, for all their rows. Softmax, sigmoid and the
// sum are in float32. On an accelerator the host waits once per layer, for the number of rows of each expert.
#ifndef HOOKLINE_SERVER_MODEL_FEED_FORWARD_EXPERTS_H_
#define HOOKLINE_SERVER_MODEL_FEED_FORWARD_EXPERTS_H_

#include "server/model/feed_forward/feed_forward.h"

namespace hookline {

class Experts : public FeedForward {
 public:
  Experts(const ExpertsConfig& config, ExpertsWeights weights, HookPointList& hook_points);

  bool Run(const at::Tensor& h, Taps& taps, at::Tensor* out) const override;

 private:
  // For each row, (rows, k): the chosen experts, and the weights of their outputs (float32).
  struct Choice {
    at::Tensor indices;
    at::Tensor weights;
  };

  Choice Choose(const at::Tensor& logits) const;
  at::Tensor WithinBestGroups(const at::Tensor& scores) const;
  at::Tensor RunChosen(const at::Tensor& h, const Choice& choice) const;
  at::Tensor RunOne(const at::Tensor& rows, const ExpertWeights& expert) const;
  at::Tensor Hidden(const at::Tensor& gate, const at::Tensor& up) const;

  const ExpertsConfig config_;
  const ExpertsWeights weights_;
  int logits_hook_ = kNoHookPoint, indices_hook_ = kNoHookPoint, weights_hook_ = kNoHookPoint;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FEED_FORWARD_EXPERTS_H_
