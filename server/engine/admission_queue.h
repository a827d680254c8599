// Takes captures in, and decides which of those that wait for slabs begins next, and with how many slabs.
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

// Returns RESOURCE_EXHAUSTED if the client or the server has too many captures for one more, and UNAVAILABLE while the
// server drains. `rows` is that of CheckQuotas.
absl::Status CheckCaptureCount(SchedulerState& state, const ClientShare& share, const CapturePlan& plan, int64_t rows);
// Returns RESOURCE_EXHAUSTED if the client has too many scorings for one more or has used up its rate, and UNAVAILABLE
// while the server drains.
absl::Status CheckScoreCount(SchedulerState& state, const ClientShare& share);
// Returns RESOURCE_EXHAUSTED if clients would hold too many tokens with `more` tokens.
absl::Status CheckHeldTokens(const SchedulerState& state, int64_t more);

// Makes the capture, which is not in `state` yet, a member of the feed that its plan names. Creates the feed if there
// is none of that name.
absl::Status JoinFeed(SchedulerState& state, CaptureId id, CaptureState& capture);
// Begins the captures that can have their slabs. If others still wait for slabs, shrinks the windows of running
// captures to two row groups.
void AdmitNow(SchedulerState& state);
// Returns whether the limits of the admission's clients let it run now. If not, it waits only for captures of
// those clients.
bool MayRunNow(const SchedulerState& state, const Admission& admission);
// Returns how many captures are admitted before this one; nullopt if it does not wait.
std::optional<int> CapturesAhead(const SchedulerState& state, CaptureId id);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_ADMISSION_QUEUE_H_
