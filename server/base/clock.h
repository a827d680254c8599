// A clock that tests can move. Durations and waits use steady time (steady.h).
#ifndef HOOKLINE_SERVER_BASE_CLOCK_H_
#define HOOKLINE_SERVER_BASE_CLOCK_H_

#include "absl/time/time.h"

namespace hookline {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;

  // Returns a clock that reads SteadyNow. It lives as long as the process.
  static const Clock* Steady();
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_CLOCK_H_
