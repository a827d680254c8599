#include "server/service/wake_queue.h"

#include <utility>

namespace hookline {
namespace {

// One writes at about 4 GB/s, and is needed only while the engine is slower than the wire: otherwise a call goes on
// from gRPC's threads. The second keeps a call with little to send from waiting for one with much.
constexpr int kThreads = 2;

}  // namespace

WakeQueue::WakeQueue() {
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
}

WakeQueue::~WakeQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void WakeQueue::Post(std::function<void()> action) {
  absl::MutexLock lock(&mutex_);
  actions_.push_back(std::move(action));
}

void WakeQueue::Run() {
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
