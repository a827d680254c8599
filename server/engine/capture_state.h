// The scheduler's record of a capture.
#ifndef HOOKLINE_SERVER_ENGINE_CAPTURE_STATE_H_
#define HOOKLINE_SERVER_ENGINE_CAPTURE_STATE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/client_identity.h"
#include "server/engine/batch.h"
#include "server/engine/client_share.h"
#include "server/engine/ids.h"
#include "server/engine/turns.h"

namespace hookline {

enum class CapturePhase {
  kWaiting,   // waits for its window
  kRunning,   // has its window
  kStopping,  // takes no more sequences; rows may be in flight
  kEnded,     // its final event is queued
};

// A capture's phase and the reason why it stops. Only this class changes either.
class CaptureLife {
 public:
  CapturePhase phase() const { return phase_; }
  bool IsWaiting() const { return phase_ == CapturePhase::kWaiting; }
  // These two are set from kStopping on.
  StopReason stop_reason() const { return stop_reason_; }
  const absl::Status& stop_status() const { return stop_status_; }
  // Batches whose rows have not all reached the queue.
  int in_flight() const { return in_flight_; }
  // Returns whether rows that are on their way are still sent.
  bool WantsRows() const {
    return phase_ == CapturePhase::kRunning ||
           (phase_ == CapturePhase::kStopping &&
            (stop_reason_ == StopReason::kBudget || stop_reason_ == StopReason::kSourceEnded));
  }
  // Returns whether the capture has ended and none of its batches is in flight, so that it can be forgotten.
  bool IsOver() const { return phase_ == CapturePhase::kEnded && in_flight_ == 0; }

  void Begin() { phase_ = CapturePhase::kRunning; }

  // Stops the capture for this reason. Returns false if it has ended, or already stops for a reason that
  // takes precedence.
  bool Stop(StopReason reason, absl::Status status) {
    if (phase_ == CapturePhase::kEnded) return false;
    if (phase_ == CapturePhase::kStopping) {
      // A source may end while the batch that fills the budgets is on its way.
      const bool filled = reason == StopReason::kBudget && stop_reason_ == StopReason::kSourceEnded;
      // An error may lose rows that are on their way.
      const bool lost = reason == StopReason::kError && WantsRows();
      if (!filled && !lost && reason != StopReason::kCancelled && reason != StopReason::kShuttingDown) return false;
    }
    phase_ = CapturePhase::kStopping;
    stop_reason_ = reason;
    stop_status_ = std::move(status);
    return true;
  }
  // Makes the capture stop with an error, whatever it stops for already, unless it has ended.
  void Fail(absl::Status status) {
    if (phase_ == CapturePhase::kEnded) return;
    phase_ = CapturePhase::kStopping;
    stop_reason_ = StopReason::kError;
    stop_status_ = std::move(status);
  }
  // Ends a stopping capture when none of its batches is in flight. A server that shuts down does not wait: rows in
  // flight are dropped when they arrive. Returns whether this call ended the capture.
  bool EndIfLanded() {
    if (phase_ != CapturePhase::kStopping) return false;
    if (in_flight_ > 0 && stop_reason_ != StopReason::kShuttingDown) return false;
    phase_ = CapturePhase::kEnded;
    return true;
  }

  void TakeOff() { ++in_flight_; }
  void Land() { --in_flight_; }

 private:
  CapturePhase phase_ = CapturePhase::kWaiting;
  StopReason stop_reason_ = StopReason::kSourceEnded;
  absl::Status stop_status_;
  int in_flight_ = 0;
};

// The counts and times for a capture's summary.
struct CaptureAccount {
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t batches = 0;
  double batch_fill_sum = 0;
  absl::Duration queue_time;
  absl::Duration forward_time;
  absl::Duration copy_time;

  CaptureEnded Ended(StopReason reason, absl::Status status) const {
    CaptureEnded ended;
    ended.status = std::move(status);
    ended.stop_reason = reason;
    ended.sequences = sequences;
    ended.tokens = tokens;
    ended.batches = batches;
    if (batches > 0) ended.mean_batch_fill = batch_fill_sum / static_cast<double>(batches);
    ended.queue_time = queue_time;
    ended.forward_time = forward_time;
    ended.copy_time = copy_time;
    return ended;
  }
};

struct CaptureState {
  ModelId model{};
  ClientIdentity client;
  Recipient recipient;  // its window is null until the capture is admitted
  CaptureLife life;

  FlowId flow = kNoFlow;     // none once it takes no more sequences
  bool source_full = false;  // its client was told to wait before it streams more
  absl::Time last_sent;      // when its client last streamed something, or it was admitted
  int64_t window_slabs = 0;  // the size of its window, or less once that was told to shrink
  bool drop_queued = false;  // when it ends, drop what its client has not read
  std::shared_ptr<ClientShare> share;
  RowCursor cursor;
  Turns turns;
  // Planned deliveries of which some rows have no slabs yet; rows that are planned meanwhile get none either, so that
  // slabs are taken in the order in which rows are handed over.
  int unplaced_deliveries = 0;
  int64_t token_bytes = 0;  // of all rows of one token
  absl::Time arrived;
  absl::Time waiting_since;         // when it arrived; once it is admitted, when that happened
  int64_t model_tokens_before = 0;  // those that its model had run when it was admitted
  CaptureAccount account;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_CAPTURE_STATE_H_
