#include "server/engine/next_batch.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/batch_former.h"
#include "server/engine/capture_end.h"
#include "server/engine/rerun.h"

namespace hookline {
namespace {

// Clients that start together arrive within this share of the batch delay. A capture that is alone waits no longer than
// that.
constexpr int kQuietShare = 2;

// Returns how many tokens the capture's next batch may have, so that its rows have room in the window or on the
// executor's device, where rows of `staged` bytes wait already.
int64_t TokensWithRoom(const SchedulerState& state, int64_t staged, const CaptureState& capture) {
  const EngineOptions& options = state.options;
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
bool HasRoom(const SchedulerState& state, int64_t staged, const CaptureState& capture) {
  const Flow& flow = state.flows.at(capture.flow);
  const ModelQueue& queue = state.QueueOf(capture.model);
  if (capture.unplaced_deliveries > 0) {
    // Each executor computes a batch while the rows of others wait. On an accelerator one more is computed while the
    // rows of one leave it; on the CPU both are the same cores.
    const int more = queue.setup.info->device == "cpu" ? 0 : 1;
    if (capture.unplaced_deliveries >= queue.left + more) return false;
  } else if (capture.recipient.window->free_slabs() < capture.recipient.plan->group_slabs) {
    return false;
  } else if (staged == 0) {
    return true;  // it is alone, so --max-pending-bytes is the limit of what it may need
  }
  if (!flow.source.HasNext()) return true;
  const int64_t needed = flow.deterministic ? queue.setup.max_batch_tokens : flow.source.NextLength();
  return needed <= TokensWithRoom(state, staged, capture);
}

// A feed whose admitted members have all left waits for those that are still to be admitted.
bool IsReady(const SchedulerState& state, int64_t staged, Flow& flow) {
  if (flow.is_planning || !flow.source.HasNext() || flow.receivers.empty()) return false;
  Flow::Room& room = flow.room;
  if (room.is_known && staged == 0) return room.is_there;
  room.is_there = true;
  room.tokens = std::numeric_limits<int64_t>::max();
  for (CaptureId id : flow.receivers) {
    const CaptureState& capture = state.captures.at(id);
    room.is_there &= HasRoom(state, staged, capture);
    room.tokens = std::min(room.tokens, TokensWithRoom(state, staged, capture));
  }
  room.is_known = staged == 0;
  return room.is_there;
}

// Returns whether the flow is ready.
bool UpdateWaitingTimes(SchedulerState& state, int64_t staged, Flow& flow, absl::Time now) {
  if (IsReady(state, staged, flow)) {
    flow.ready_since = std::min(flow.ready_since, now);
    flow.stalled_since = absl::InfiniteFuture();
    return true;
  }
  flow.ready_since = absl::InfiniteFuture();
  if (!flow.feed.has_value() || flow.is_planning) return false;
  int64_t with_room = 0;
  for (CaptureId id : flow.receivers) with_room += HasRoom(state, staged, state.captures.at(id)) ? 1 : 0;
  // A feed is stalled if some members keep the others waiting.
  flow.stalled_since =
      flow.source.HasNext() && with_room > 0 ? std::min(flow.stalled_since, now) : absl::InfiniteFuture();
  return false;
}

// A feed's members wait for each other, but not for ever.
// Returns whether the flow is ready then.
bool DetachLaggards(SchedulerState& state, int64_t staged, Flow& flow, absl::Time now, absl::Time* look_again) {
  if (flow.stalled_since == absl::InfiniteFuture() || flow.feed->on_lag == OnLag::kWait) return false;
  const absl::Time patience_ends = flow.stalled_since + state.options.feed_stall_timeout;
  if (now < patience_ends) {
    *look_again = std::min(*look_again, patience_ends);
    return false;
  }
  std::vector<CaptureId> laggards;
  for (CaptureId id : flow.receivers) {
    if (!HasRoom(state, staged, state.captures.at(id))) laggards.push_back(id);
  }
  const absl::Status status = absl::UnavailableError(
      absl::StrCat("feed \"", flow.feed->name, "\" goes on without this member, which did not read for ",
                   absl::FormatDuration(state.options.feed_stall_timeout),
                   " (--feed-stall-timeout); continue alone with the resume token"));
  for (CaptureId id : laggards) StopCapture(state, id, StopReason::kError, status);
  return UpdateWaitingTimes(state, staged, flow, now);
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
  for (const Flow* flow : queue.turn) more_may_come |= !flow->source.Ended() && !flow->is_ready;
  const absl::Time patience_ends = oldest + state.options.max_batch_delay;
  if (more_may_come) return patience_ends;
  return std::min(patience_ends, queue.last_arrival + state.options.max_batch_delay / kQuietShare);
}

// The batch of a scoring if it is its turn beside `flows` flows that could run now.
std::optional<Batch> TakeScore(SchedulerState& state, ModelQueue& queue, int executor, int64_t flows) {
  ScoreQueue::Turn turn = queue.scores.Take(flows, executor);
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

void AddMembers(SchedulerState& state, int executor, Flow& flow, absl::Time now, Batch* batch) {
  ModelQueue& queue = state.QueueOf(flow.model);
  queue.load.queue_seconds.Add(absl::ToDoubleSeconds(now - flow.ready_since));
  for (CaptureId id : flow.receivers) {
    CaptureState& capture = state.captures.at(id);
    capture.account.queue_time += now - std::max(flow.ready_since, capture.waiting_since);
    capture.life.TakeOff();
    Batch::Member& member = batch->members.emplace_back();
    member.recipient = capture.recipient;
    member.flow = flow.id;
    member.turn = capture.turns.Take(executor);
    member.cursor = capture.cursor;
    member.has_unplaced = capture.unplaced_deliveries > 0;
    if (capture.source_full && 2 * flow.source.queued_tokens() < kStreamedBatchesAhead * queue.setup.max_batch_tokens) {
      capture.source_full = false;
      state.AfterUnlock([events = capture.recipient.events] { events->NotifySourceRoom(); });
    }
  }
  flow.ready_since = absl::InfiniteFuture();
  flow.is_planning = true;
}

// A batch that a lost executor had. Where all are lost, each gets some, so that they are dropped.
std::optional<Batch> TakeRerun(SchedulerState& state, ExecutorId executor) {
  ModelQueue& queue = state.QueueOf(executor.model);
  if (queue.reruns.empty()) return std::nullopt;
  Batch batch;
  batch.rerun = std::move(queue.reruns.front());
  queue.reruns.pop_front();
  for (const std::unique_ptr<Delivery>& delivery : batch.rerun->deliveries) {
    state.captures.at(delivery->recipient().capture).turns.Move(delivery->turn(), executor.index);
    state.AddStagedBytes(executor, delivery->staged_bytes());
  }
  return batch;
}

}  // namespace

std::optional<Batch> FormNextBatch(SchedulerState& state, ExecutorId executor, absl::Time* look_again) {
  ModelQueue& queue = state.QueueOf(executor.model);
  const absl::Time now = state.clock.Now();
  const ModelQueue::Executor& own = state.ExecutorOf(executor);
  if (own.is_lost) return queue.left == 0 ? TakeRerun(state, executor) : std::nullopt;
  const bool may_launch = own.MayLaunch();
  if (std::optional<Batch> rerun = may_launch ? TakeRerun(state, executor) : std::nullopt) return rerun;
  // If there are other executors, they look for what has become ready.
  if (!may_launch && queue.left > 1) return TakeScore(state, queue, executor.index, /*flows=*/0);
  const int64_t staged = state.StagedBytes(executor);
  std::vector<Flow*> ready;
  // Flows whose members all leave go out of the line meanwhile.
  for (Flow* one : std::vector<Flow*>(queue.turn)) {
    Flow& flow = *one;
    flow.is_ready = flow.is_in_batch = false;
    if (!UpdateWaitingTimes(state, staged, flow, now) && !DetachLaggards(state, staged, flow, now, look_again))
      continue;
    if (const absl::Duration delay = flow.share->bucket.Delay(now); delay > absl::ZeroDuration()) {
      *look_again = std::min(*look_again, now + delay);
      continue;
    }
    flow.is_ready = true;
    // It takes no more tokens into the batch than each of its captures has room for.
    flow.most_tokens = flow.room.tokens;
    ready.push_back(&flow);
  }
  if (ready.empty() || !may_launch) return TakeScore(state, queue, executor.index, /*flows=*/0);
  if (const absl::Time run_at = WhenToRun(state, queue, ready, now); now < run_at) {
    *look_again = std::min(*look_again, run_at);
    return TakeScore(state, queue, executor.index, /*flows=*/0);
  }
  const int64_t flows_ready = static_cast<int64_t>(ready.size());
  if (std::optional<Batch> score = TakeScore(state, queue, executor.index, flows_ready)) return score;

  const BatchLimits limits{queue.setup.max_batch_tokens, queue.setup.info->mixes_lengths};
  // Small flows go first, but not twice in a row, so that a stream of them delays the others only a little.
  const std::vector<Flow*> small = queue.small_went_first ? std::vector<Flow*>() : SmallFlows(ready, limits);
  queue.small_went_first = !small.empty();
  Batch batch;
  batch.items = FormBatch(small.empty() ? ready : small, ready, limits);
  int64_t tokens = 0;
  for (const BatchItem& item : batch.items) tokens += item.sequence.length;
  queue.scores.FlowsRun(flows_ready, tokens);
  size_t flows_in_batch = 0;
  for (const BatchItem& item : batch.items) {
    Flow& flow = state.flows.at(item.flow);
    flows_in_batch += flow.is_in_batch ? 0 : 1;
    flow.is_in_batch = true;
    flow.share->bucket.Take(item.sequence.length, now);
  }
  for (Flow* flow : queue.turn) {
    if (flow->is_in_batch) AddMembers(state, executor.index, *flow, now, &batch);
  }
  // The flow that gave the first sequence goes to the end of the line.
  Flow* const first = &state.flows.at(batch.items.front().flow);
  EraseValue(&queue.turn, first);
  queue.turn.push_back(first);
  if (flows_in_batch < ready.size()) queue.WakeOne();
  return batch;
}

}  // namespace hookline
