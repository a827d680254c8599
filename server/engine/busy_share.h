// The share of the last seconds that an executor spent computing.
#ifndef HOOKLINE_SERVER_ENGINE_BUSY_SHARE_H_
#define HOOKLINE_SERVER_ENGINE_BUSY_SHARE_H_

#include <algorithm>
#include <cmath>

#include "absl/time/time.h"

namespace hookline {

// A decaying average: a moment counts half as much as one that is a half-life later. Not thread-safe.
class BusyShare {
 public:
  // Adds work that took `busy` and ended at `now`.
  void Add(absl::Duration busy, absl::Time now) {
    share_ = std::min(1.0, At(now) + (1 - Remains(busy)));
    last_ = now;
  }
  double At(absl::Time now) const { return share_ * Remains(now - last_); }

 private:
  // This is long enough for passes that take seconds, and short enough to show soon that a device idles.
  static constexpr absl::Duration kHalfLife = absl::Seconds(5);

  static double Remains(absl::Duration passed) { return std::exp2(-absl::FDivDuration(passed, kHalfLife)); }

  double share_ = 0;
  absl::Time last_ = absl::UnixEpoch();
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_BUSY_SHARE_H_
