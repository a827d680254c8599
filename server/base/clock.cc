#include "server/base/clock.h"

#include <chrono>

namespace hookline {
namespace {

// What std::condition_variable_any asks of a mutex.
class StandardLock {
 public:
  explicit StandardLock(absl::Mutex* mu) : mu_(mu) {}
  void lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mu_->Lock(); }
  void unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mu_->Unlock(); }

 private:
  absl::Mutex* const mu_;
};

class MonotonicClock final : public Clock {
 public:
  absl::Time Now() const override { return MonotonicNow(); }
};

}  // namespace

absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

const Clock* Clock::Monotonic() {
  static const auto* const clock = new MonotonicClock();
  return clock;
}

void MonotonicCondVar::WaitUntil(absl::Mutex* mu, absl::Time deadline) {
  StandardLock lock(mu);
  if (deadline == absl::InfiniteFuture()) {
    waiting_.wait(lock);
    return;
  }
  waiting_.wait_until(lock,
                      std::chrono::steady_clock::time_point(absl::ToChronoNanoseconds(deadline - absl::UnixEpoch())));
}

}  // namespace hookline
