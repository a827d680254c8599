// A lane: sequences that wait for forward passes, and the captures that receive their rows. A capture has a lane of its
// own; a feed's members share one.
#ifndef HOOKLINE_SERVER_CAPTURE_LANE_H_
#define HOOKLINE_SERVER_CAPTURE_LANE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/capture/request.h"
#include "server/capture/sequence_source.h"

namespace hookline {

class RunningCapture;

struct Lane {
  Lane(const CapturePlan& plan, int64_t max_batch_tokens)
      : source(plan, max_batch_tokens), deterministic(plan.deterministic) {}

  SequenceSource source;
  const bool deterministic;

  // Admitted captures that still want rows.
  std::vector<std::shared_ptr<RunningCapture>> receivers;
  // Tokens that the lane may still put into batches before others' turn comes (deficit round robin).
  int64_t deficit = 0;
  // Since when a sequence waits while every receiver has room.
  absl::Time ready_since = absl::InfiniteFuture();

  // What its first member asked for, where the lane is a feed's.
  std::optional<FeedSource> feed;
  bool started = true;  // a feed starts when it has enough members
  // Members of a feed that has not started; they hold no slabs.
  std::vector<std::shared_ptr<RunningCapture>> waiting_members;
  // Since when some, but not all, receivers of a feed have no room.
  absl::Time stalled_since = absl::InfiniteFuture();
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_LANE_H_
