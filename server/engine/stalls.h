// Ends captures whose clients neither read nor send while others wait for what they hold, and scorings whose clients do
// not answer.
#ifndef HOOKLINE_SERVER_ENGINE_STALLS_H_
#define HOOKLINE_SERVER_ENGINE_STALLS_H_

#include "absl/time/time.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler_state.h"

namespace hookline {

// Ends the captures that have stalled for EngineOptions::stall_timeout, and logs who waits for whom. Lowers
// `look_again` to the time when the next one could be due.
void EndStalled(SchedulerState& state, absl::Time now, absl::Time* look_again);
// Ends the scorings whose clients have answered nothing for EngineOptions::answer_timeout. Lowers `look_again` as
// EndStalled does.
void EndSilentScores(SchedulerState& state, absl::Time now, absl::Time* look_again);
// Returns how long the capture has waited for its client to read or to send; zero if it does not.
absl::Duration IdleOf(const SchedulerState& state, CaptureId id, const UnreleasedCapture& unreleased, absl::Time now);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_STALLS_H_
