// Reports the scheduler's state to operators and metrics.
#ifndef HOOKLINE_SERVER_ENGINE_STATUS_REPORT_H_
#define HOOKLINE_SERVER_ENGINE_STATUS_REPORT_H_

#include "absl/time/time.h"
#include "server/capture/capture_status.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler_state.h"
#include "server/engine/snapshot.h"

namespace hookline {

CaptureStatus StatusOf(const SchedulerState& state, CaptureId id, const CaptureState& capture, absl::Time now);
// Fills in what the state knows: captures, clients and models.
void ReportLoad(const SchedulerState& state, EngineSnapshot* snapshot);
// The load of a model that has run nothing.
EngineSnapshot::ModelLoad NoLoad(const ModelInfo& info);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_STATUS_REPORT_H_
