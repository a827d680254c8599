#include "server/base/clock.h"

#include "server/base/steady.h"

namespace hookline {
namespace {

class SteadyClock final : public Clock {
 public:
  absl::Time Now() const override { return SteadyNow(); }
};

}  // namespace

const Clock* Clock::Steady() {
  static const auto* const clock = new SteadyClock();
  return clock;
}

}  // namespace hookline
