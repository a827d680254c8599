#include "server/model/feed_forward/experts.h"

#include <limits>
#include <tuple>
#include <utility>

#include "server/model/layers.h"

namespace hookline {
namespace {

// DeepSeek's own code adds this, so that the sum of weights that are all 0 does not divide by 0.
constexpr double kSumEpsilon = 1e-20;

}  // namespace

Experts::Experts(const ExpertsConfig& config, ExpertsWeights weights, HookPointList& hook_points)
    : config_(config), weights_(std::move(weights)) {
  logits_hook_ =
      hook_points.Add("mlp.hook_router_logits", config.experts, "The router's output, one logit per expert.");
  indices_hook_ =
      hook_points.Add("mlp.hook_expert_indices", config.chosen,
                      "The chosen experts' numbers, in descending order of the score that chose them; those "
                      "above 256 need float32.");
  hook_points.Observation(indices_hook_);
  weights_hook_ =
      hook_points.Add("mlp.hook_expert_weights", config.chosen,
                      "The factors by which the outputs of the chosen experts are multiplied, in the same order.");
}

bool Experts::Run(const at::Tensor& h, Taps& taps, at::Tensor* out) const {
  at::Tensor logits = Linear(h.to(weights_.router.weight.scalar_type()), weights_.router);  // (rows, E)
  if (taps(logits_hook_, logits)) return true;
  Choice choice = Choose(logits.to(at::kFloat));
  if (taps.Observe(indices_hook_, choice.indices.to(at::kFloat)) || taps(weights_hook_, choice.weights)) return true;
  *out = RunChosen(h, choice);
  if (config_.shared_width > 0) {
    const DenseWeights& shared = weights_.shared;
    at::Tensor one = Linear(Hidden(Linear(h, shared.gate), Linear(h, shared.up)), shared.down);
    if (config_.shared_gated) one = one * at::sigmoid(Linear(h, weights_.shared_gate));
    *out = *out + one;
  }
  return false;
}

// The unrounded logits decide near-ties; hook_router_logits shows them.
Experts::Choice Experts::Choose(const at::Tensor& logits) const {
  Choice choice;
  at::Tensor weights;  // of all experts, or of the chosen
  switch (config_.routing) {
    case ExpertsConfig::Routing::kSoftmax:
      std::tie(choice.weights, choice.indices) = at::topk(at::softmax(logits, -1), config_.chosen);
      break;
    case ExpertsConfig::Routing::kSoftmaxOfChosen:
      std::tie(weights, choice.indices) = at::topk(logits, config_.chosen);
      choice.weights = at::softmax(weights, -1);
      break;
    case ExpertsConfig::Routing::kSigmoid:
      weights = at::sigmoid(logits);
      choice.indices = std::get<1>(at::topk(WithinBestGroups(weights + weights_.correction), config_.chosen));
      choice.weights = at::gather(weights, 1, choice.indices);
      break;
  }
  if (config_.renormalized) choice.weights = choice.weights / (choice.weights.sum(1, /*keepdim=*/true) + kSumEpsilon);
  if (config_.weight_factor != 1) choice.weights = choice.weights * config_.weight_factor;
  return choice;
}

// Returns `scores` (rows, E) with -infinity outside the best groups. A group's score is the sum of its
// two best experts.
at::Tensor Experts::WithinBestGroups(const at::Tensor& scores) const {
  if (config_.chosen_groups == config_.groups) return scores;
  const at::Tensor by_group = scores.view({-1, config_.groups, config_.experts / config_.groups});
  const at::Tensor worth = std::get<0>(at::topk(by_group, 2)).sum(2);  // (rows, groups)
  const at::Tensor best = std::get<1>(at::topk(worth, config_.chosen_groups));
  const at::Tensor outside = at::ones_like(worth, at::kBool).scatter_(1, best, false);
  return by_group.masked_fill(outside.unsqueeze(2), -std::numeric_limits<float>::infinity()).view(scores.sizes());
}

at::Tensor Experts::RunChosen(const at::Tensor& h, const Choice& choice) const {
  const int64_t rows = h.size(0), chosen = config_.chosen;
  // (rows * k): the choices in the order of their experts, and those experts.
  const at::Tensor all = choice.indices.reshape(-1);
  const at::Tensor order = at::argsort(all, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor experts = at::index_select(all, 0, order);
  // This is the only wait: the host needs to know where each expert's rows end.
  const at::Tensor ends =
      at::searchsorted(experts, at::arange(config_.experts, experts.options()), /*out_int32=*/false, /*right=*/true)
          .cpu();
  const at::Tensor sorted = at::index_select(h, 0, at::div(order, chosen, "floor"));  // (rows * k, width)
  at::Tensor results = at::empty_like(sorted);
  int64_t begin = 0;
  for (int64_t e = 0; e < config_.experts; ++e) {
    const int64_t end = ends.data_ptr<int64_t>()[e];
    if (end == begin) continue;
    results.narrow(0, begin, end - begin)
        .copy_(RunOne(sorted.narrow(0, begin, end - begin), weights_.experts[static_cast<size_t>(e)]));
    begin = end;
  }
  const at::Tensor back = at::empty_like(order).index_copy_(0, order, at::arange(rows * chosen, order.options()));
  const at::Tensor by_row = at::index_select(results, 0, back).view({rows, chosen, h.size(1)});
  return at::bmm(choice.weights.unsqueeze(1), by_row.to(at::kFloat)).squeeze(1).to(h.scalar_type());
}

at::Tensor Experts::RunOne(const at::Tensor& rows, const ExpertWeights& expert) const {
  const DenseWeights& apart = expert.apart;
  if (!expert.gate_up.weight.defined()) {
    return Linear(Hidden(Linear(rows, apart.gate), Linear(rows, apart.up)), apart.down);
  }
  const at::Tensor both = Linear(rows, expert.gate_up);
  return Linear(Hidden(both.slice(1, 0, both.size(1), 2), both.slice(1, 1, both.size(1), 2)), apart.down);
}

at::Tensor Experts::Hidden(const at::Tensor& gate, const at::Tensor& up) const {
  if (config_.limit == 0) return Activate(gate, config_.activation).mul_(up);
  const at::Tensor held = gate.clamp_max(config_.limit);
  const at::Tensor linear = up.clamp(-config_.limit, config_.limit).add_(1);
  return at::sigmoid(held * config_.sharpness).mul_(held).mul_(linear);
}

}  // namespace hookline
