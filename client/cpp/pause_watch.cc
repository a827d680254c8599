#include "client/cpp/pause_watch.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "grpc/support/time.h"

namespace hookline::client {
namespace {

// A caller that reads nothing for this long may read nothing for minutes. It is shorter than any server's keepalive.
constexpr absl::Duration kPause = absl::Milliseconds(100);
// After a pause, the last call's end waits at most this long for the thread, and a reader shares the connection with
// the thread for at most this long.
constexpr int64_t kSliceMilliseconds = 20;

}  // namespace

PauseWatch::Reads::Reads(std::shared_ptr<PauseWatch> watch) : watch_(std::move(watch)) {
  absl::MutexLock lock(&watch_->mutex_);
  watch_->calls_.push_back({this});
  if (watch_->waits_for_call_) watch_->changed_.NotifyAll();
}

void PauseWatch::Reads::End() {
  absl::MutexLock lock(&watch_->mutex_);
  std::vector<Watched>& calls = watch_->calls_;
  const auto is_this = [this](const Watched& watched) { return watched.call == this; };
  calls.erase(std::remove_if(calls.begin(), calls.end(), is_this), calls.end());
}

PauseWatch::PauseWatch(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)), thread_([this] { Run(); }) {}

PauseWatch::~PauseWatch() {
  {
    absl::MutexLock lock(&mutex_);
    over_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

bool PauseWatch::AnyIsPaused() const {
  return std::any_of(calls_.begin(), calls_.end(), [](const Watched& watched) {
    return watched.seen % 2 == 0 && watched.call->count() == watched.seen;
  });
}

void PauseWatch::Run() {
  absl::MutexLock lock(&mutex_);
  const auto is_over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return over_; };
  while (!over_) {
    if (calls_.empty()) {
      waits_for_call_ = true;
      changed_.WaitUntil(mutex_, absl::InfiniteFuture());
      waits_for_call_ = false;
      continue;
    }
    // The counters are polled, since notifying a condition variable of each read would cost more than the read.
    if (changed_.WaitFor(mutex_, kPause, is_over)) return;
    while (!over_ && AnyIsPaused()) {
      mutex_.Unlock();
      // The channel's state hardly ever changes, but waiting for a change makes gRPC read from the connection.
      const gpr_timespec slice =
          gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(kSliceMilliseconds, GPR_TIMESPAN));
      channel_->WaitForStateChange(channel_->GetState(/*try_to_connect=*/false), slice);
      mutex_.Lock();
    }
    for (Watched& watched : calls_) watched.seen = watched.call->count();
  }
}

}  // namespace hookline::client
