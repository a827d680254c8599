#include "server/model/unembedding.h"

#include <algorithm>
#include <utility>

#include "server/model/layers.h"

namespace hookline {
namespace {

// The number of ids that are converted at a time if a tied table is stored in another dtype than the model's, so that
// there is never a second copy of the whole table.
constexpr int64_t kConvertedIds = 16384;

}  // namespace

Unembedding::Unembedding(const DecoderConfig& config, DecoderWeights& weights)
    : weights_(std::move(weights.unembedding)),
      projection_(std::move(weights.unembedding_projection)),
      scale_(config.logit_scale),
      soft_cap_(config.logit_soft_cap) {}

at::Tensor Unembedding::Logits(const at::Tensor& x) const {
  const at::Tensor rows = projection_.weight.defined() ? Linear(x, projection_) : x;
  at::Tensor logits;
  if (weights_.weight.scalar_type() == rows.scalar_type()) {
    logits = Linear(rows, weights_).to(at::kFloat);
  } else {
    logits = at::empty({rows.size(0), vocabulary_size()}, rows.options().dtype(at::kFloat));
    for (int64_t first = 0; first < vocabulary_size(); first += kConvertedIds) {
      const int64_t count = std::min(kConvertedIds, vocabulary_size() - first);
      const at::Tensor part = weights_.weight.narrow(1, first, count).to(rows.scalar_type());
      logits.narrow(1, first, count).copy_(at::mm(rows, part));
    }
    if (weights_.bias.defined()) logits.add_(weights_.bias);
  }
  if (scale_ != 1) logits = logits * scale_;
  if (soft_cap_ != 0) logits = logits.div(soft_cap_).tanh_().mul_(soft_cap_);
  return logits;
}

}  // namespace hookline
