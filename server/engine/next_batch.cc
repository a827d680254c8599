#include "server/engine/next_batch.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/batch_former.h"
#include "server/engine/capture_end.h"

namespace hookline {
namespace {

// One batch is computed while the rows of the one before are copied; more would only delay the next client.
constexpr int kMaxLaunchedBatches = 2;

// Clients that start together arrive within this share of the batch delay. A capture that is alone waits no longer than
// that.
constexpr int kQuietShare = 2;

int64_t StagedBytes(const SchedulerState& state, const CaptureState& capture) {
  const auto staged = state.staged_bytes.find(state.QueueOf(capture.model).setup.info->device);
  return staged == state.staged_bytes.end() ? 0 : staged->second;
}

// Returns how many tokens the capture's next batch may have, so that its rows have room in the window or on the device.
int64_t TokensWithRoom(const SchedulerState& state, const CaptureState& capture) {
  const EngineOptions& options = state.options;
  const int64_t staged = StagedBytes(state, capture);
  int64_t bytes = 0;
  if (capture.unplaced_deliveries > 0) {
    // Half of the device's room is for captures that have nothing there yet.
    bytes = std::max<int64_t>(0, std::min(options.max_staged_bytes / 2 - staged, options.max_pending_bytes));
  } else {
    bytes = std::max<int64_t>(0, options.max_staged_bytes - staged) +
            capture.recipient.window->free_slabs() * options.slab_bytes;
  }
  return bytes / std::max<int64_t>(1, capture.token_bytes);
}

// Returns whether the next sequence of the capture's flow may run: there is room for its rows in the capture's window,
// or on the device within EngineOptions::max_staged_bytes.
bool HasRoom(const SchedulerState& state, const CaptureState& capture) {
  const Flow& flow = state.flows.at(capture.flow);
  const ModelQueue& queue = state.QueueOf(capture.model);
  if (capture.unplaced_deliveries > 0) {
    // On an accelerator the next batch is computed while the rows of one leave it; on the CPU both are the same cores.
    if (queue.setup.info->device == "cpu" || capture.unplaced_deliveries > 1) return false;
  } else if (capture.recipient.window->free_slabs() < capture.recipient.plan->group_slabs) {
    return false;
  } else if (StagedBytes(state, capture) == 0) {
    return true;  // it is alone, so --max-pending-bytes is the limit of what it may need
  }
  if (!flow.source.HasNext()) return true;
  const int64_t needed = flow.deterministic ? queue.setup.max_batch_tokens : flow.source.NextLength();
  return needed <= TokensWithRoom(state, capture);
}

// A feed whose admitted members have all left waits for those that are still to be admitted.
bool IsReady(const SchedulerState& state, const Flow& flow) {
  if (!flow.source.HasNext() || flow.receivers.empty()) return false;
  for (CaptureId id : flow.receivers) {
    if (!HasRoom(state, state.captures.at(id))) return false;
  }
  return true;
}

void UpdateWaitingTimes(SchedulerState& state, Flow& flow, absl::Time now) {
  if (IsReady(state, flow)) {
    flow.ready_since = std::min(flow.ready_since, now);
    flow.stalled_since = absl::InfiniteFuture();
    return;
  }
  flow.ready_since = absl::InfiniteFuture();
  int64_t with_room = 0;
  for (CaptureId id : flow.receivers) with_room += HasRoom(state, state.captures.at(id)) ? 1 : 0;
  // A feed is stalled if some members keep the others waiting.
  flow.stalled_since = flow.feed.has_value() && flow.source.HasNext() && with_room > 0
                           ? std::min(flow.stalled_since, now)
                           : absl::InfiniteFuture();
}

// A feed's members wait for each other, but not for ever.
void DetachLaggards(SchedulerState& state, Flow& flow, absl::Time now, absl::Time* look_again) {
  if (flow.stalled_since == absl::InfiniteFuture() || flow.feed->on_lag == OnLag::kWait) return;
  const absl::Time patience_ends = flow.stalled_since + state.options.feed_stall_timeout;
  if (now < patience_ends) {
    *look_again = std::min(*look_again, patience_ends);
    return;
  }
  std::vector<CaptureId> laggards;
  for (CaptureId id : flow.receivers) {
    if (!HasRoom(state, state.captures.at(id))) laggards.push_back(id);
  }
  const absl::Status status = absl::UnavailableError(
      absl::StrCat("feed \"", flow.feed->name, "\" goes on without this member, which did not read for ",
                   absl::FormatDuration(state.options.feed_stall_timeout),
                   " (--feed-stall-timeout); continue alone with the resume token"));
  for (CaptureId id : laggards) StopCapture(state, id, StopReason::kError, status);
  UpdateWaitingTimes(state, flow, now);
}

// Sequences that do not fill a batch wait a moment for the next sequences of other captures, and for captures that are
// about to begin.
absl::Time WhenToRun(const SchedulerState& state, const ModelQueue& queue, const std::vector<Flow*>& ready,
                     absl::Time now) {
  int64_t queued_tokens = 0;
  absl::Time oldest = absl::InfiniteFuture();
  for (const Flow* flow : ready) {
    // A dataset fills batches by itself, and a deterministic flow shares no batch.
    if (flow->source.queued_tokens() == 0 || flow->deterministic) return now;
    queued_tokens += flow->source.queued_tokens();
    oldest = std::min(oldest, flow->ready_since);
  }
  if (queued_tokens >= queue.setup.max_batch_tokens) return now;
  bool more_may_come = false;
  for (FlowId id : queue.turn) {
    const Flow& flow = state.flows.at(id);
    more_may_come |= !flow.source.Ended() && std::find(ready.begin(), ready.end(), &flow) == ready.end();
  }
  const absl::Time patience_ends = oldest + state.options.max_batch_delay;
  if (more_may_come) return patience_ends;
  return std::min(patience_ends, queue.last_arrival + state.options.max_batch_delay / kQuietShare);
}

// The batch of a scoring if it is its turn beside `flows` flows that could run now.
std::optional<Batch> TakeScore(SchedulerState& state, ModelQueue& queue, int64_t flows) {
  ScoreQueue::Turn turn = queue.scores.Take(flows);
  if (turn.run == nullptr) return std::nullopt;
  const ScoreEntry& entry = state.scores.at(turn.id);
  const std::shared_ptr<ClientShare>& share = entry.share;
  share->bucket.Take(turn.positions, state.clock.Now());
  share->tokens += turn.positions;
  Batch batch;
  batch.score = std::move(turn.run);
  batch.score_id = turn.id;
  if (turn.paused > 0) {
    batch.score_room = std::make_unique<PauseRoom>(
        turn.paused,
        [calls = &state.calls, model = entry.model, positions = turn.paused] { calls->pause_ended(model, positions); });
  }
  return batch;
}

void AddMembers(SchedulerState& state, Flow& flow, absl::Time now, Batch* batch) {
  ModelQueue& queue = state.QueueOf(flow.model);
  queue.load.queue_seconds.Add(absl::ToDoubleSeconds(now - flow.ready_since));
  for (CaptureId id : flow.receivers) {
    CaptureState& capture = state.captures.at(id);
    capture.account.queue_time += now - std::max(flow.ready_since, capture.waiting_since);
    capture.life.TakeOff();
    batch->members.push_back(
        {capture.recipient, flow.id, capture.cursor, /*has_unplaced=*/capture.unplaced_deliveries > 0});
    if (capture.source_full && 2 * flow.source.queued_tokens() < kStreamedBatchesAhead * queue.setup.max_batch_tokens) {
      capture.source_full = false;
      state.AfterUnlock([events = capture.recipient.events] { events->NotifySourceRoom(); });
    }
  }
  flow.ready_since = absl::InfiniteFuture();
}

// A flow takes no more tokens into the next batch than each of its captures has room for.
void LimitTokens(const SchedulerState& state, Flow& flow) {
  flow.most_tokens = std::numeric_limits<int64_t>::max();
  for (CaptureId id : flow.receivers) {
    flow.most_tokens = std::min(flow.most_tokens, TokensWithRoom(state, state.captures.at(id)));
  }
}

}  // namespace

std::optional<Batch> FormNextBatch(SchedulerState& state, ModelId model, absl::Time* look_again) {
  ModelQueue& queue = state.QueueOf(model);
  const absl::Time now = state.clock.Now();
  std::vector<Flow*> ready;
  for (FlowId id : std::vector<FlowId>(queue.turn)) {
    const auto found = state.flows.find(id);
    if (found == state.flows.end()) continue;
    Flow& flow = found->second;
    UpdateWaitingTimes(state, flow, now);
    DetachLaggards(state, flow, now, look_again);
    if (!IsReady(state, flow)) continue;
    if (const absl::Duration delay = flow.share->bucket.Delay(now); delay > absl::ZeroDuration()) {
      *look_again = std::min(*look_again, now + delay);
      continue;
    }
    ready.push_back(&flow);
  }
  if (ready.empty() || queue.launched_batches >= kMaxLaunchedBatches) return TakeScore(state, queue, /*flows=*/0);
  if (const absl::Time run_at = WhenToRun(state, queue, ready, now); now < run_at) {
    *look_again = std::min(*look_again, run_at);
    return TakeScore(state, queue, /*flows=*/0);
  }
  const int64_t flows_ready = static_cast<int64_t>(ready.size());
  if (std::optional<Batch> score = TakeScore(state, queue, flows_ready)) return score;

  for (Flow* flow : ready) LimitTokens(state, *flow);
  const BatchLimits limits{queue.setup.max_batch_tokens, queue.setup.info->mixes_lengths};
  // Small flows go first, but not twice in a row, so that a stream of them delays the others only a little.
  const std::vector<Flow*> small = queue.small_went_first ? std::vector<Flow*>() : SmallFlows(ready, limits);
  queue.small_went_first = !small.empty();
  Batch batch;
  batch.items = FormBatch(small.empty() ? ready : small, ready, limits);
  int64_t tokens = 0;
  for (const BatchItem& item : batch.items) tokens += item.sequence.length;
  queue.scores.FlowsRun(flows_ready, tokens);
  std::set<FlowId> in_batch;
  for (const BatchItem& item : batch.items) {
    in_batch.insert(item.flow);
    state.flows.at(item.flow).share->bucket.Take(item.sequence.length, now);
  }
  for (FlowId id : queue.turn) {
    if (in_batch.count(id) != 0) AddMembers(state, state.flows.at(id), now, &batch);
  }
  // The flow that gave the first sequence goes to the end of the line.
  EraseValue(&queue.turn, batch.items.front().flow);
  queue.turn.push_back(batch.items.front().flow);
  return batch;
}

}  // namespace hookline
