// Threads that help another thread with work that can be done in pieces.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_READ_TEAM_H_
#define HOOKLINE_SERVER_MODEL_LOAD_READ_TEAM_H_

#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// Belongs to one thread at a time. On a busy machine no thread waits for a helper that did not get to run, unlike with
// LibTorch's own threads, all of which have to finish each loop.
class ReadTeam {
 public:
  // Starts no thread if `helpers` is zero or less.
  explicit ReadTeam(int helpers) {
    for (int i = 0; i < helpers; ++i) threads_.emplace_back([this] { Help(); });
  }

  ~ReadTeam() {
    {
      absl::MutexLock lock(&mutex_);
      ends_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  ReadTeam(const ReadTeam&) = delete;
  ReadTeam& operator=(const ReadTeam&) = delete;

  // Runs `work` in this thread and in the helpers that come in time. `work` returns once no piece is left to claim, and
  // does not throw. Returns once no thread runs it any more.
  void Run(absl::FunctionRef<void()> work) {
    {
      absl::MutexLock lock(&mutex_);
      work_ = &work;
      ++round_;
    }
    work();
    absl::MutexLock lock(&mutex_);
    work_ = nullptr;
    const auto is_idle = [this] {
      mutex_.AssertHeld();
      return working_ == 0;
    };
    mutex_.Await(absl::Condition(&is_idle));
  }

 private:
  void Help() {
    int64_t seen = 0;
    absl::MutexLock lock(&mutex_);
    while (true) {
      const auto is_wanted = [&] {
        mutex_.AssertHeld();
        return ends_ || (work_ != nullptr && round_ != seen);
      };
      mutex_.Await(absl::Condition(&is_wanted));
      if (ends_) return;
      seen = round_;
      const absl::FunctionRef<void()>* const work = work_;
      ++working_;
      mutex_.Unlock();
      (*work)();
      mutex_.Lock();
      --working_;
    }
  }

  absl::Mutex mutex_;
  const absl::FunctionRef<void()>* work_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null: none
  int64_t round_ ABSL_GUARDED_BY(mutex_) = 0;                                // distinguishes calls of Run
  int working_ ABSL_GUARDED_BY(mutex_) = 0;                                  // helpers that are running it
  bool ends_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_READ_TEAM_H_
