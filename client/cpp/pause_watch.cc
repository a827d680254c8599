#include "client/cpp/pause_watch.h"

#include <utility>

#include "absl/time/time.h"
#include "grpc/support/time.h"

namespace hookline::client {
namespace {

// A caller that reads nothing for this long may read nothing for minutes. It is shorter than any server's keepalive.
constexpr absl::Duration kPause = absl::Milliseconds(100);
// After a pause, a call waits at most this long for its end, or for the watch to leave the connection to the reader.
constexpr int64_t kSliceMilliseconds = 20;

}  // namespace

PauseWatch::PauseWatch(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)), thread_([this] { Run(); }) {}

PauseWatch::~PauseWatch() {
  End();
  thread_.join();
}

void PauseWatch::End() {
  absl::MutexLock lock(&mutex_);
  over_ = true;
  changed_.NotifyAll();
}

void PauseWatch::Run() {
  absl::MutexLock lock(&mutex_);
  const auto is_over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return over_; };
  int64_t seen = -1;
  // The counter is polled, since notifying a condition variable of each read would cost more than the read.
  while (!changed_.WaitFor(mutex_, kPause, is_over)) {
    const int64_t before = std::exchange(seen, reads_.load(std::memory_order_relaxed));
    if (seen != before || seen % 2 != 0) continue;
    while (!over_ && reads_.load(std::memory_order_relaxed) == seen) {
      mutex_.Unlock();
      // The channel's state hardly ever changes, but waiting for a change makes gRPC read from the connection.
      const gpr_timespec slice =
          gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(kSliceMilliseconds, GPR_TIMESPAN));
      channel_->WaitForStateChange(channel_->GetState(/*try_to_connect=*/false), slice);
      mutex_.Lock();
    }
  }
}

}  // namespace hookline::client
