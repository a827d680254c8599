// Threads on which calls go on after the engine woke them.
#ifndef HOOKLINE_SERVER_SERVICE_TASK_THREADS_H_
#define HOOKLINE_SERVER_SERVICE_TASK_THREADS_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// The engine calls back from its own threads, and, where a slab that comes back is what somebody waited for, from
// whichever of gRPC's threads let go of it, possibly while gRPC holds internal locks. Neither should write to sockets,
// which is what starting a write does; so calls go on here. Thread-safe.
class TaskThreads {
 public:
  explicit TaskThreads(int threads = kDefaultThreads);
  // Runs what was posted before.
  ~TaskThreads();
  TaskThreads(const TaskThreads&) = delete;
  TaskThreads& operator=(const TaskThreads&) = delete;

  // Runs `action` soon, on a thread of this queue, possibly beside others. Never blocks. The caller bounds how much is
  // posted: a call has one action here at a time.
  void Post(std::function<void()> action);

 private:
  // One writes at about 4 GB/s, and is needed only while the engine is slower than the wire: otherwise a call goes on
  // from gRPC's threads. The second keeps a call with little to send from waiting for one with much.
  static constexpr int kDefaultThreads = 2;

  void Run();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> actions_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_TASK_THREADS_H_
