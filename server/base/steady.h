// Time that does not change when the wall clock is set. absl::Now() is the wall clock, and Abseil's waits with a
// time-out end at a time of the wall clock.
#ifndef HOOKLINE_SERVER_BASE_STEADY_H_
#define HOOKLINE_SERVER_BASE_STEADY_H_

#include <chrono>
#include <condition_variable>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace hookline {

// Returns a time for differences only: its origin means nothing.
inline absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

// A condition variable for absl::Mutex. Code that changes what a predicate reads must call NotifyAll.
class SteadyCondVar {
 public:
  void NotifyAll() { changed_.notify_all(); }

  // Waits, with `mutex` released, until it is notified or until `deadline`, a time of SteadyNow. It can return earlier.
  void WaitUntil(absl::Mutex& mutex, absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    Lockable lockable{mutex};
    if (deadline == absl::InfiniteFuture()) {
      changed_.wait(lockable);
    } else {
      changed_.wait_for(lockable, absl::ToChronoNanoseconds(deadline - SteadyNow()));
    }
  }

  // Waits, with `mutex` released, until `predicate()` is true or `timeout` has passed. Returns the predicate's last
  // value.
  template <typename Predicate>
  bool WaitFor(absl::Mutex& mutex, absl::Duration timeout, Predicate predicate) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    Lockable lockable{mutex};
    if (timeout == absl::InfiniteDuration()) {
      changed_.wait(lockable, predicate);
      return true;
    }
    return changed_.wait_for(lockable, absl::ToChronoNanoseconds(timeout), predicate);
  }

 private:
  // The thread-safety analysis sees that the caller holds the mutex, not that the standard library releases it
  // in between.
  struct Lockable {
    void lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.Lock(); }
    void unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.Unlock(); }
    absl::Mutex& mutex;
  };

  std::condition_variable_any changed_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_STEADY_H_
