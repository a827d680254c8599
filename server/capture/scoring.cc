#include "server/capture/scoring.h"

#include <cmath>
#include <limits>

namespace hookline {

double VariantTotals::MeanLoss() const {
  return predictions > 0 ? loss_sum / static_cast<double>(predictions) : std::numeric_limits<double>::quiet_NaN();
}

std::optional<double> ScoreEnded::LossRecovered(const ScorePlan& plan, size_t variant) const {
  if (plan.zero_of.empty()) return std::nullopt;
  const double zero = variants[1 + plan.zero_of[variant]].MeanLoss();
  const double recovered = (zero - variants[1 + variant].MeanLoss()) / (zero - variants[0].MeanLoss());
  if (!std::isfinite(recovered)) return std::nullopt;
  return recovered;
}

}  // namespace hookline
