#include "server/service/shared_memory/descriptor_closer.h"

#include <unistd.h>

#include <deque>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {
namespace {

// Other closes wait only while this many block; those of honest clients' descriptors take microseconds.
constexpr int kMaxThreads = 8;

}  // namespace

struct DescriptorCloser::State {
  // Waits for a descriptor to close. Returns none if the thread must end.
  std::optional<int> Next() {
    absl::MutexLock lock(&mutex);
    const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return over || !queue.empty(); };
    ++idle_threads;
    mutex.Await(absl::Condition(&wake));
    --idle_threads;
    if (queue.empty()) return std::nullopt;
    const int descriptor = queue.front();
    queue.pop_front();
    return descriptor;
  }

  absl::Mutex mutex;
  std::deque<int> queue ABSL_GUARDED_BY(mutex);
  size_t pending ABSL_GUARDED_BY(mutex) = 0;  // in the queue or being closed
  int threads ABSL_GUARDED_BY(mutex) = 0;
  size_t idle_threads ABSL_GUARDED_BY(mutex) = 0;  // those that wait, or that a descriptor has woken
  bool over ABSL_GUARDED_BY(mutex) = false;
};

DescriptorCloser::DescriptorCloser() : state_(std::make_shared<State>()) {}

DescriptorCloser::~DescriptorCloser() {
  absl::MutexLock lock(&state_->mutex);
  state_->over = true;
}

void DescriptorCloser::Close(int descriptor) {
  {
    absl::MutexLock lock(&state_->mutex);
    state_->queue.push_back(descriptor);
    ++state_->pending;
    if (state_->queue.size() <= state_->idle_threads || state_->threads == kMaxThreads) return;
    ++state_->threads;
  }
  std::thread([state = state_] {
    while (const std::optional<int> next = state->Next()) {
      close(*next);
      absl::MutexLock lock(&state->mutex);
      --state->pending;
    }
  }).detach();
}

size_t DescriptorCloser::pending() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->pending;
}

}  // namespace hookline
