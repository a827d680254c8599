#include "server/engine/event_queue.h"

#include <algorithm>
#include <utility>

#include "server/base/steady.h"

namespace hookline {

EventQueue::EventQueue(CaptureCallbacks callbacks, std::function<void()> on_released)
    : callbacks_(std::move(callbacks)), on_released_(std::move(on_released)), created_(SteadyNow()) {}

void EventQueue::PushStarted(CaptureStarted started) {
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    consumed_.resize(started.hook_points.size());
    for (size_t i = 0; i < consumed_.size(); ++i) {
      consumed_[i].rows = std::max(consumed_[i].rows, started.hook_points[i].rows);
    }
    resume_token_ = started.resume_token;
    started_ = std::move(started);
    begun_ = true;
  }
  Notify();
}

void EventQueue::SkipStarted() {
  absl::MutexLock lock(&mutex_);
  begun_ = true;
}

void EventQueue::PushChunks(std::vector<QueuedChunk> chunks) {
  {
    absl::MutexLock lock(&mutex_);
    if (!closed_ && !ended_.has_value() && !released_) {
      for (QueuedChunk& chunk : chunks) chunks_.push_back(std::move(chunk));
    }
  }
  Notify();
}

// The chunks are taken by value, so that their slabs go back.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
void EventQueue::AddStatistics(const CapturePlan& plan, std::vector<QueuedChunk> chunks) {
  {
    absl::MutexLock lock(&profiles_mutex_);
    if (profiles_.empty()) {
      for (const CapturePlan::HookPoint& hook_point : plan.hook_points) profiles_.emplace_back(hook_point.width);
    }
    for (const QueuedChunk& queued : chunks) {
      const RowLayout& layout = plan.hook_points[queued.chunk.hook_point].layout;
      for (const SlabSpan& span : queued.chunk.data) {
        profiles_[queued.chunk.hook_point].Add(span.data(), span.bytes / layout.bytes(), layout);
      }
    }
  }
  absl::MutexLock lock(&mutex_);
  consumed_.resize(plan.hook_points.size());
  for (const QueuedChunk& queued : chunks) {
    Consumed& consumed = consumed_[queued.chunk.hook_point];
    consumed.rows = queued.chunk.first_row + queued.chunk.rows;
    consumed.statistics.Add(queued.statistics);
  }
}

void EventQueue::End(CaptureEnded ended, Queued queued) {
  std::deque<QueuedChunk> dropped;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_ || ended_.has_value()) return;
    if (queued == Queued::kDrop) dropped.swap(chunks_);
    ended_ = std::move(ended);
  }
  Notify();
}

bool EventQueue::TakesChunks() const {
  absl::MutexLock lock(&mutex_);
  return !closed_ && !ended_.has_value() && !released_;
}

std::optional<CaptureEvent> EventQueue::Next() {
  CaptureEnded ended;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_ || released_) return std::nullopt;
    if (!HasEvent()) {
      sink_waits_ = true;
      return std::nullopt;
    }
    ++consumed_events_;
    if (started_.has_value()) {
      CaptureEvent event = std::move(*started_);
      started_.reset();
      return event;
    }
    if (!chunks_.empty()) {
      QueuedChunk next = std::move(chunks_.front());
      chunks_.pop_front();
      Consumed& consumed = consumed_[next.chunk.hook_point];
      consumed.rows = next.chunk.first_row + next.chunk.rows;
      consumed.statistics.Add(next.statistics);
      resume_token_ = next.chunk.resume_token;
      return CaptureEvent(std::move(next.chunk));
    }
    ended = *std::move(ended_);
    ended.hook_points.resize(consumed_.size());
    for (size_t i = 0; i < consumed_.size(); ++i) {
      ended.hook_points[i].rows = consumed_[i].rows;
      consumed_[i].statistics.Summarize(&ended.hook_points[i]);
    }
    {
      absl::MutexLock profiles(&profiles_mutex_);
      for (size_t i = 0; i < profiles_.size(); ++i) profiles_[i].Summarize(&ended.hook_points[i]);
    }
    ended.resume_token = resume_token_;
    ended.wire_time = wire_time_;
    ended.total_time = SteadyNow() - created_;
    released_ = true;
  }
  on_released_();
  return CaptureEvent(std::move(ended));
}

void EventQueue::AddWireTime(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  wire_time_ += duration;
}

void EventQueue::Close() {
  std::deque<QueuedChunk> dropped;
  bool release;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    closed_ = true;
    dropped.swap(chunks_);
    release = !released_;
    released_ = true;
  }
  {
    absl::MutexLock lock(&callback_mutex_);
    closed_to_callbacks_ = true;
  }
  dropped.clear();
  if (release) on_released_();
}

void EventQueue::NotifySourceRoom() {
  absl::MutexLock lock(&callback_mutex_);
  if (!closed_to_callbacks_ && callbacks_.on_source_room) callbacks_.on_source_room();
}

void EventQueue::NotifyExpired() {
  absl::MutexLock lock(&callback_mutex_);
  if (!closed_to_callbacks_ && callbacks_.on_expired) callbacks_.on_expired();
}

bool EventQueue::WaitsForSink() const {
  absl::MutexLock lock(&mutex_);
  return !closed_ && !released_ && HasEvent();
}

bool EventQueue::HasEvent() const { return begun_ && (started_.has_value() || !chunks_.empty() || ended_.has_value()); }

int64_t EventQueue::consumed_events() const {
  absl::MutexLock lock(&mutex_);
  return consumed_events_;
}

void EventQueue::Abandon(absl::Status status) {
  std::deque<QueuedChunk> dropped;  // destroyed after the lock is released, since slabs that return call back
  absl::MutexLock lock(&mutex_);
  if (closed_ || !ended_.has_value()) return;
  dropped.swap(chunks_);
  ended_->status = std::move(status);
  ended_->stop_reason = StopReason::kError;
}

void EventQueue::Notify() {
  {
    absl::MutexLock lock(&mutex_);
    if (!sink_waits_ || closed_) return;
    sink_waits_ = false;
  }
  absl::MutexLock lock(&callback_mutex_);
  if (!closed_to_callbacks_ && callbacks_.on_ready) callbacks_.on_ready();
}

}  // namespace hookline
