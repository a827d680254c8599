// A capture inside the engine.
#ifndef HOOKLINE_SERVER_CAPTURE_RUNNING_CAPTURE_H_
#define HOOKLINE_SERVER_CAPTURE_RUNNING_CAPTURE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/slab_pool.h"
#include "server/capture/capture_plan.h"
#include "server/capture/event_queue.h"
#include "server/capture/lane.h"

namespace hookline {

struct Delivery;

// How a capture is to end once nothing of it is in flight.
struct CaptureStop {
  StopReason reason = StopReason::kSourceEnded;
  absl::Status status;
};

// Fields are guarded by the engine's mutex, unless they say otherwise.
class RunningCapture {
 public:
  RunningCapture(CapturePlan capture_plan, std::string client_address, CaptureCallbacks callbacks,
                 std::function<void()> on_released)
      : plan(std::move(capture_plan)),
        address(std::move(client_address)),
        group_slabs(0),
        queue(std::move(callbacks), std::move(on_released)),
        next_streamed_sequence(plan.position.batch_sequence) {}

  const CapturePlan plan;
  const std::string address;
  int64_t group_slabs;  // of a full row group; set before the capture is shared
  EventQueue queue;     // thread-safe

  // Of the sequences that the client streams: the index of the first that has not come.
  int64_t next_streamed_sequence;
  // Where its sequences come from; null once it wants no more.
  std::shared_ptr<Lane> lane;
  std::unique_ptr<SlabWindow> window;  // null until admitted; thread-safe itself
  bool streams = false;                // the client sends its sequences
  bool source_full = false;            // AddSequences said so
  bool counted = true;                 // against the limits on captures

  // Set once; the first one holds.
  std::optional<CaptureStop> stop;
  bool ended = false;
  // Its sink is gone: nothing needs to be delivered. Also read without the mutex.
  std::atomic<bool> cancelled{false};
  // Rows that were planned and have not all reached the queue.
  int in_flight = 0;
  // Whether some of those have no slabs yet; more must not be planned before they have.
  bool unplaced = false;
  // The delivery that waits for slabs to come back; null if none.
  std::shared_ptr<Delivery> waiting;

  // The executor's thread alone, once admitted.
  int64_t next_row = 0;       // of the row that is planned next
  ResumePosition skip_until;  // rows before this place were sent before the resume

  // For the summary.
  absl::Time ready_since = absl::InfinitePast();  // arrived or, once it is, admitted
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t batches = 0;
  double batch_fill_sum = 0;
  absl::Duration queue_time;
  absl::Duration forward_time;
  absl::Duration copy_time;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_RUNNING_CAPTURE_H_
