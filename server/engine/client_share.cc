#include "server/engine/client_share.h"

#include <algorithm>

namespace hookline {
namespace {

// By default a client may save the tokens of this time: enough for a training loop that pauses to log or to evaluate.
constexpr int64_t kDefaultBurstSeconds = 10;

}  // namespace

void TokenBucket::SetLimits(int64_t tokens_per_second, int64_t burst_tokens, absl::Time now) {
  const double rate = static_cast<double>(tokens_per_second);
  const double burst = static_cast<double>(burst_tokens == 0 ? kDefaultBurstSeconds * tokens_per_second : burst_tokens);
  const bool is_new = rate_ == 0;
  const double level = is_new ? burst : std::min(LevelAt(now), burst);
  rate_ = rate;
  burst_ = burst;
  level_ = level;
  updated_ = now;
}

double TokenBucket::LevelAt(absl::Time now) const {
  return std::min(burst_, level_ + rate_ * absl::ToDoubleSeconds(now - updated_));
}

absl::Duration TokenBucket::Delay(absl::Time now) const {
  if (rate_ == 0) return absl::ZeroDuration();
  const double level = LevelAt(now);
  // The delay is until there is a whole token, so that the level is above zero when it has passed.
  return level > 0 ? absl::ZeroDuration() : absl::Seconds((1 - level) / rate_);
}

bool TokenBucket::IsFull(absl::Time now) const { return rate_ == 0 || LevelAt(now) >= burst_; }

void TokenBucket::Take(int64_t tokens, absl::Time now) {
  if (rate_ == 0) return;
  level_ = LevelAt(now) - static_cast<double>(tokens);
  updated_ = now;
}

}  // namespace hookline
