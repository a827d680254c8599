// Time for what is measured and waited for. The wall clock may be set back or forth while the server runs; this one
// only moves forward, at its own pace, so that durations and time-outs do not depend on it.
#ifndef HOOKLINE_SERVER_BASE_CLOCK_H_
#define HOOKLINE_SERVER_BASE_CLOCK_H_

#include <condition_variable>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace hookline {

// The monotonic clock's reading. Its zero is arbitrary: two readings may be subtracted and compared, and a reading is
// never a date. absl::InfiniteFuture() and absl::InfinitePast() are later and earlier than every reading.
absl::Time MonotonicNow();

// Tells the time to what a test wants to move through time. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;

  // MonotonicNow. Lives as long as the process.
  static const Clock* Monotonic();
};

// absl::CondVar whose deadlines are readings of MonotonicNow. Thread-safe.
class MonotonicCondVar {
 public:
  // Releases `mu`, waits until signalled or until `deadline`, and takes `mu` again. May return without either.
  void WaitUntil(absl::Mutex* mu, absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void SignalAll() { waiting_.notify_all(); }

 private:
  std::condition_variable_any waiting_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_CLOCK_H_
