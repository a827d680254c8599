// The scheduler's record of a capture.
#ifndef HOOKLINE_SERVER_ENGINE_CAPTURE_STATE_H_
#define HOOKLINE_SERVER_ENGINE_CAPTURE_STATE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/client_identity.h"
#include "server/engine/batch.h"
#include "server/engine/client_share.h"
#include "server/engine/ids.h"

namespace hookline {

enum class CapturePhase {
  kWaiting,   // for its window
  kRunning,   // has its window
  kStopping,  // takes no more sequences; rows may be in flight
  kEnded,     // its final event is queued
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
  CapturePhase phase = CapturePhase::kWaiting;
  // Set from kStopping on.
  StopReason stop_reason = StopReason::kSourceEnded;
  absl::Status stop_status;

  FlowId flow = kNoFlow;     // none once it takes no more sequences
  bool source_full = false;  // its client was told to wait before it streams more
  absl::Time last_sent;      // when its client last streamed something, or it was admitted
  int64_t window_slabs = 0;  // of its window, or fewer once it was told to shrink
  bool drop_queued = false;  // at its end, what its client has not read
  std::shared_ptr<ClientShare> share;
  RowCursor cursor;
  // Deliveries, and batches in the executor's hands, whose rows have not all reached the queue.
  int in_flight = 0;
  // Launched deliveries of which some rows have no slabs yet; no batch is formed before all have. Counted, because the
  // passes of a halved batch may be launched while those before them are being placed.
  int unplaced_deliveries = 0;
  absl::Time arrived;
  absl::Time waiting_since;         // when it arrived or, once it is, was admitted
  int64_t model_tokens_before = 0;  // that its model had run when it was admitted
  CaptureAccount account;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_CAPTURE_STATE_H_
