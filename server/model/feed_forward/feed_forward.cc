#include "server/model/feed_forward/feed_forward.h"

#include <utility>
#include <variant>

#include "server/model/feed_forward/dense.h"
#include "server/model/feed_forward/experts.h"

namespace hookline {

std::unique_ptr<FeedForward> MakeFeedForward(const FeedForwardConfig& config, FeedForwardWeights weights,
                                             HookPointList& hook_points) {
  if (const auto* experts = std::get_if<ExpertsConfig>(&config)) {
    return std::make_unique<Experts>(*experts, std::get<ExpertsWeights>(std::move(weights)), hook_points);
  }
  return std::make_unique<Dense>(std::get<DenseConfig>(config), std::get<DenseWeights>(std::move(weights)),
                                 hook_points);
}

}  // namespace hookline
