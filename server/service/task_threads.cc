#include "server/service/task_threads.h"

#include <utility>

namespace hookline {

TaskThreads::TaskThreads(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

TaskThreads::~TaskThreads() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void TaskThreads::Post(std::function<void()> action) {
  absl::MutexLock lock(&mutex_);
  actions_.push_back(std::move(action));
}

void TaskThreads::Run() {
  const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !actions_.empty(); };
  while (true) {
    std::function<void()> action;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&wake));
      if (actions_.empty()) return;
      action = std::move(actions_.front());
      actions_.pop_front();
    }
    action();
  }
}

}  // namespace hookline
