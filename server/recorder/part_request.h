// Cuts the request of a whole dataset to one of its parts; the proto RecordingPart.
#ifndef HOOKLINE_SERVER_RECORDER_PART_REQUEST_H_
#define HOOKLINE_SERVER_RECORDER_PART_REQUEST_H_

#include "absl/status/status.h"
#include "server/capture/request.h"
#include "server/engine/engine.h"
#include "server/recording/merge_plan.h"

namespace hookline {

// Changes `request` to record part `part.index` of `part.count`: its sequences, and what the parts before leave of the
// budgets. Fills in the sequences of the whole in `part`. INVALID_ARGUMENT, naming the field: not a dataset in order, a
// part that there is not, or budgets that are not known to be exact or leave nothing; otherwise as Engine::Plan.
absl::Status CutToPart(const Engine& engine, RecordingPart* part, CaptureRequest* request);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_PART_REQUEST_H_
