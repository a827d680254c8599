// Takes captures in, and decides which of those that wait for slabs begins next, and with how many.
#ifndef HOOKLINE_SERVER_ENGINE_ADMISSION_QUEUE_H_
#define HOOKLINE_SERVER_ENGINE_ADMISSION_QUEUE_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "server/capture/plan.h"
#include "server/engine/admission.h"
#include "server/engine/capture_state.h"
#include "server/engine/client_share.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler_state.h"

namespace hookline {

// RESOURCE_EXHAUSTED if the client or the server has too many captures for one more; `rows` as in CheckQuotas.
absl::Status CheckCaptureCount(SchedulerState& state, const ClientShare& share, const CapturePlan& plan, int64_t rows);
// RESOURCE_EXHAUSTED if the client has too many scorings for one more.
absl::Status CheckScoreCount(SchedulerState& state, const ClientShare& share);
// RESOURCE_EXHAUSTED unless clients' flows may hold `more` tokens beside those that they hold.
absl::Status CheckHeldTokens(const SchedulerState& state, int64_t more);

// Makes the capture, which is not in `state` yet, a member of the feed that its plan names, and its first member if
// nobody else is.
absl::Status JoinFeed(SchedulerState& state, CaptureId id, CaptureState& capture);
// Begins the captures that can have their slabs. If some still wait, takes slabs beyond two row groups back from those
// that run.
void AdmitNow(SchedulerState& state);
// Returns whether its clients' own limits let the admission run; if not, it waits for captures of theirs alone.
bool MayRunNow(const SchedulerState& state, const Admission& admission);
// Captures that are admitted before this one; nullopt if it does not wait.
std::optional<int> CapturesAhead(const SchedulerState& state, CaptureId id);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_ADMISSION_QUEUE_H_
