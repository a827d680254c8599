// Threads on which calls go on after the engine has woken them.
#ifndef HOOKLINE_SERVER_SERVICE_TASK_THREADS_H_
#define HOOKLINE_SERVER_SERVICE_TASK_THREADS_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// The engine calls back from its own threads and, if a capture waited for a slab, from whichever of gRPC's threads
// returns one, possibly while gRPC holds internal locks. Neither should write to sockets, which starting a write does,
// so calls go on here. Thread-safe.
class TaskThreads {
 public:
  explicit TaskThreads(int threads = kDefaultThreads);
  // Runs what was posted before, and ends the threads.
  ~TaskThreads();
  TaskThreads(const TaskThreads&) = delete;
  TaskThreads& operator=(const TaskThreads&) = delete;

  // Runs `action` soon, on one of these threads, possibly at the same time as others. Never blocks. The caller bounds
  // how much is posted: a call has one action here at a time.
  void Post(std::function<void()> action);

 private:
  // One thread writes about 4 GB/s, and is needed only while the engine is slower than the wire: otherwise calls
  // continue on gRPC's threads. The second thread keeps a call with little to send from waiting for one with much.
  static constexpr int kDefaultThreads = 2;

  void Run();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> actions_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_TASK_THREADS_H_
