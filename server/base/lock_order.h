// The order of the scheduler's and the slab pool's mutexes, and its check in debug builds.
//
//   RankedLock lock(&mutex_, LockRank::kSlabPool);
#ifndef HOOKLINE_SERVER_BASE_LOCK_ORDER_H_
#define HOOKLINE_SERVER_BASE_LOCK_ORDER_H_

#include <cassert>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// A thread that holds one of these takes another of them only if that has a higher rank. server/README.md has the order
// of all mutexes.
enum class LockRank : int { kNone = 0, kScheduler = 1, kSlabPool = 2 };

// An absl::MutexLock that, where assertions are on, aborts when it is taken out of order.
class ABSL_SCOPED_LOCKABLE RankedLock {
 public:
  RankedLock(absl::Mutex* mutex, LockRank rank) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
#ifndef NDEBUG
    assert(rank > Held());
    before_ = Held();
    Held() = rank;
#else
    (void)rank;
#endif
    mutex_->Lock();
  }
  ~RankedLock() ABSL_UNLOCK_FUNCTION() {
    mutex_->Unlock();
#ifndef NDEBUG
    Held() = before_;
#endif
  }
  RankedLock(const RankedLock&) = delete;
  RankedLock& operator=(const RankedLock&) = delete;

 private:
#ifndef NDEBUG
  // The highest rank that this thread holds.
  static LockRank& Held() {
    thread_local LockRank held = LockRank::kNone;
    return held;
  }
  LockRank before_;
#endif
  absl::Mutex* const mutex_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_LOCK_ORDER_H_
