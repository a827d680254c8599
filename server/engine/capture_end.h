// Ends captures, from the first cause to stop until the scheduler forgets them. CaptureLife has the phases.
#ifndef HOOKLINE_SERVER_ENGINE_CAPTURE_END_H_
#define HOOKLINE_SERVER_ENGINE_CAPTURE_END_H_

#include "absl/status/status.h"
#include "server/capture/capture.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler_state.h"

namespace hookline {

// Stops the capture, unless it already stops for a reason that takes precedence. The capture leaves the admissions and
// its flow, and ends when none of its batches is in flight.
void StopCapture(SchedulerState& state, CaptureId id, StopReason reason, absl::Status status);
// Stops all captures and scorings for a shutdown, and refuses new ones.
void StopAll(SchedulerState& state, const absl::Status& status);
// Stops the receivers of the flow if its source has ended.
void EndFlowIfDone(SchedulerState& state, FlowId id);
// Counts one batch of the capture as no longer in flight, which may end the capture.
void Landed(SchedulerState& state, CaptureId id);

// Returns the event that announces to a client that its capture has begun, with rows from `begin` on.
CaptureStarted StartedEvent(CaptureId id, const CapturePlan& plan, const ResumePosition& begin);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_CAPTURE_END_H_
