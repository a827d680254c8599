// Decides what an executor runs next, or that it waits.
#ifndef HOOKLINE_SERVER_ENGINE_NEXT_BATCH_H_
#define HOOKLINE_SERVER_ENGINE_NEXT_BATCH_H_

#include <optional>

#include "absl/time/time.h"
#include "server/engine/batch.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler_state.h"

namespace hookline {

// Takes a batch that a lost executor had, sequences of flows that are ready, or the next pass of a scoring. Returns
// none if the executor must wait; it does so while
//   - no flow is ready: each one lacks a sequence, lacks room in one of its captures, has the rows of its last batch
//     planned by another executor, or belongs to a client that has used up its rate;
//   - two batches of the executor are launched and not yet computed;
//   - a batch is not full, and more sequences may come within EngineOptions::max_batch_delay.
// Lowers `look_again` to the time when that may have changed by itself. Feeds leave behind members that do not read.
std::optional<Batch> FormNextBatch(SchedulerState& state, ExecutorId executor, absl::Time* look_again);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_NEXT_BATCH_H_
