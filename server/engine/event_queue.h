// The events of a capture that are ready for its sink. The capture's window bounds the queue, because each chunk in it
// holds slabs.
#ifndef HOOKLINE_SERVER_ENGINE_EVENT_QUEUE_H_
#define HOOKLINE_SERVER_ENGINE_EVENT_QUEUE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/plan.h"
#include "server/engine/row_profile.h"
#include "server/engine/row_statistics.h"

namespace hookline {

struct QueuedChunk {
  Chunk chunk;
  RowStatistics statistics;
};

// Thread-safe. Pushing runs on_ready if the sink waits, so do not push with a lock held. The first event is pushed by
// the thread that admits the capture and the others by a copier's, which may be sooner; they wait for the first.
class EventQueue {
 public:
  // `on_released` runs once, when the sink has consumed the final event or closed the queue.
  EventQueue(CaptureCallbacks callbacks, std::function<void()> on_released);

  void PushStarted(CaptureStarted started);
  // For a capture that was never admitted: lets the final event come without a first one.
  void SkipStarted();
  void PushChunks(std::vector<QueuedChunk> chunks);
  // For statistics_only: adds the rows of `chunks` to the summary and gives back their slabs. One thread at a time
  // may call it. The resume token stays that of the start, because statistics that were lost with a connection must
  // begin again.
  void AddStatistics(const CapturePlan& plan, std::vector<QueuedChunk> chunks);
  // Returns false once the capture has ended or its sink is gone; chunks pushed after that are dropped.
  bool TakesChunks() const;
  // Pushes the last event. Its rows and statistics are filled in when the sink consumes it. With kDrop, chunks that the
  // sink has not consumed are dropped, so that this event comes next.
  enum class Queued { kKeep, kDrop };
  void End(CaptureEnded ended, Queued queued);

  std::optional<CaptureEvent> Next();
  void AddWireTime(absl::Duration duration);
  // Drops everything. When it returns, no callback runs or will run.
  void Close();

  // Runs on_source_room, unless closed.
  void NotifySourceRoom();
  // Runs on_expired, unless closed.
  void NotifyExpired();

  // Returns whether there are events that the sink has not asked for.
  bool WaitsForSink() const;
  // Returns how many events the sink has consumed.
  int64_t consumed_events() const;
  // For a capture that has ended: drops the chunks that the sink has not consumed, and makes `status` its final status.
  void Abandon(absl::Status status);

 private:
  void Notify();
  bool HasEvent() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const CaptureCallbacks callbacks_;
  const std::function<void()> on_released_;
  const absl::Time created_;

  // This is held while a callback runs.
  absl::Mutex callback_mutex_;
  bool closed_to_callbacks_ ABSL_GUARDED_BY(callback_mutex_) = false;

  absl::Mutex profiles_mutex_;  // taken with mutex_ held, never the other way round
  std::vector<RowProfile> profiles_ ABSL_GUARDED_BY(profiles_mutex_);  // statistics_only; one for each hook point

  mutable absl::Mutex mutex_ ABSL_ACQUIRED_BEFORE(profiles_mutex_);
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;  // the first event was pushed or skipped
  std::optional<CaptureStarted> started_ ABSL_GUARDED_BY(mutex_);
  std::deque<QueuedChunk> chunks_ ABSL_GUARDED_BY(mutex_);
  std::optional<CaptureEnded> ended_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  bool sink_waits_ ABSL_GUARDED_BY(mutex_) = true;
  int64_t consumed_events_ ABSL_GUARDED_BY(mutex_) = 0;
  // The rows of one hook point that the sink has consumed.
  struct Consumed {
    int64_t rows = 0;
    RowStatistics statistics;
  };
  std::vector<Consumed> consumed_ ABSL_GUARDED_BY(mutex_);
  std::string resume_token_ ABSL_GUARDED_BY(mutex_);
  absl::Duration wire_time_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_EVENT_QUEUE_H_
