// Narrows the request for a whole dataset to one of its parts; the proto RecordingPart.
#ifndef HOOKLINE_SERVER_RECORDER_PART_REQUEST_H_
#define HOOKLINE_SERVER_RECORDER_PART_REQUEST_H_

#include "absl/status/status.h"
#include "server/capture/request.h"
#include "server/engine/engine.h"
#include "server/recording/merge_plan.h"

namespace hookline {

// Changes `request` to record only part `part.index` of `part.count`: its sequences, and what the parts before it leave
// of the budgets. Fills in `part` with the sequences of the whole request. INVALID_ARGUMENT, naming the field: the
// source is not a dataset in order, there is no such part, or the rows of the parts before are not known or leave
// nothing of a budget; otherwise the errors of Engine::Plan.
absl::Status CutToPart(const Engine& engine, RecordingPart* part, CaptureRequest* request);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_PART_REQUEST_H_
