// The executor's thread of a replica, but for the forward pass itself: who runs next.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/steady.h"
#include "server/capture/engine_impl.h"

namespace hookline {
namespace {

// One is computed while the rows of the one before are copied; more would only delay who comes next.
constexpr int kMaxLaunchedBatches = 2;

// Clients that start together are heard of within this share of the batch delay, one after another. Whoever is alone
// waits no longer than that.
constexpr int kQuietShare = 4;

Histogram MakeHistogram(std::vector<double> bounds) {
  Histogram histogram;
  histogram.counts.resize(bounds.size() + 1);
  histogram.bounds = std::move(bounds);
  return histogram;
}

const std::vector<double> kSecondsBounds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                            0.25,   0.5,   1,      2.5,   5,    10,    30};
const std::vector<double> kShareBounds = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1};

}  // namespace

Replica::Replica(EngineImpl* engine, std::unique_ptr<Model> model, std::unique_ptr<Transfer> transfer,
                 EngineOptions options)
    : engine_(engine), model_(std::move(model)), transfer_(std::move(transfer)), options_(std::move(options)) {
  load_.model = model_->info().name;
  load_.batch_fill = MakeHistogram(kShareBounds);
  load_.forward_seconds = MakeHistogram(kSecondsBounds);
  load_.queue_seconds = MakeHistogram(kSecondsBounds);
  executor_ = std::thread([this] { ExecutorLoop(); });
  copier_ = std::thread([this] { CopierLoop(); });
}

Replica::~Replica() = default;

void Replica::AddLane(std::shared_ptr<Lane> lane) {
  if (std::find(lanes_.begin(), lanes_.end(), lane) == lanes_.end()) lanes_.push_back(std::move(lane));
  Arrived();
}

void Replica::RemoveLane(const Lane* lane) {
  lanes_.erase(std::remove_if(lanes_.begin(), lanes_.end(), [&](const auto& own) { return own.get() == lane; }),
               lanes_.end());
  Wake();
}

void Replica::Resume(std::shared_ptr<Delivery> delivery) {
  resumed_.push_back(std::move(delivery));
  wake_copier_.Signal();
}

void Replica::Stop() {
  stopping_ = true;
  wake_executor_.SignalAll();
}

void Replica::Join() {
  executor_.join();
  {
    absl::MutexLock lock(&engine_->mu_);
    copier_stopping_ = true;
    wake_copier_.SignalAll();
  }
  copier_.join();
}

bool Replica::LaneReady(Lane& lane, absl::Time now, absl::Time* look_again, Deferred* deferred) {
  if (!lane.source.HasNext()) return false;
  std::vector<std::shared_ptr<RunningCapture>> without_room;
  for (const auto& capture : lane.receivers) {
    if (capture->unplaced || capture->window->free_slabs() < capture->group_slabs) without_room.push_back(capture);
  }
  if (without_room.empty()) {
    lane.stalled_since = absl::InfiniteFuture();
    lane.ready_since = std::min(lane.ready_since, now);
    return true;
  }
  lane.ready_since = absl::InfiniteFuture();
  // A feed's members wait for each other, but not for ever.
  if (!lane.feed.has_value() || lane.feed->on_lag == OnLag::kWait || without_room.size() == lane.receivers.size()) {
    lane.stalled_since = absl::InfiniteFuture();
    return false;
  }
  lane.stalled_since = std::min(lane.stalled_since, now);
  const absl::Time patience_ends = lane.stalled_since + options_.feed_stall_timeout;
  if (now < patience_ends) {
    *look_again = std::min(*look_again, patience_ends);
    return false;
  }
  for (const auto& capture : without_room) {
    engine_->StopCapture(
        capture, StopReason::kError,
        absl::UnavailableError(absl::StrCat("feed \"", lane.feed->name,
                                            "\" goes on without this member, which did not "
                                            "read for ",
                                            absl::FormatDuration(options_.feed_stall_timeout),
                                            " (--feed-stall-timeout); continue alone with the resume token")),
        deferred);
  }
  lane.stalled_since = absl::InfiniteFuture();
  lane.ready_since = now;
  return true;
}

std::optional<Replica::Batch> Replica::NextBatch() {
  Deferred deferred;
  absl::MutexLock lock(&engine_->mu_);
  while (true) {
    if (stopping_) return std::nullopt;
    const absl::Time now = SteadyNow();
    absl::Time look_again = absl::InfiniteFuture();
    std::vector<Lane*> ready;
    bool more_may_come = false;
    int64_t queued_tokens = 0;
    bool waits_for_more = true;
    absl::Time oldest = absl::InfiniteFuture();
    for (const std::shared_ptr<Lane>& lane : std::vector<std::shared_ptr<Lane>>(lanes_)) {
      if (!LaneReady(*lane, now, &look_again, &deferred)) {
        more_may_come |= !lane->source.Ended();
        continue;
      }
      ready.push_back(lane.get());
      queued_tokens += lane->source.queued_tokens();
      // A dataset fills batches by itself, and a deterministic lane shares none.
      waits_for_more &= lane->source.queued_tokens() > 0 && !lane->deterministic;
      oldest = std::min(oldest, lane->ready_since);
    }
    if (!deferred.empty()) return Batch();  // what was put off must not wait with us
    if (ready.empty() || launched_batches_ >= kMaxLaunchedBatches) {
      wake_executor_.WaitWithTimeout(&engine_->mu_, look_again - now);
      continue;
    }
    // Sequences that do not fill a batch wait a moment for captures that are between two of theirs, and for those that
    // are about to begin.
    absl::Time run_at = oldest + options_.max_batch_delay;
    if (!more_may_come) run_at = std::min(run_at, last_arrival_ + options_.max_batch_delay / kQuietShare);
    if (waits_for_more && queued_tokens < options_.max_batch_tokens && now < run_at) {
      wake_executor_.WaitWithTimeout(&engine_->mu_, std::min(look_again, run_at) - now);
      continue;
    }

    Batch batch;
    const BatchLimits limits{options_.max_batch_tokens, model_->info().mixes_lengths};
    // Small ones go first, but not twice in a row, so that a stream of them delays the others by little.
    const std::vector<Lane*> small = small_went_first_ ? std::vector<Lane*>() : SmallLanes(ready, limits);
    small_went_first_ = !small.empty();
    batch.items = FormBatch(small.empty() ? ready : small, limits);
    std::set<const Lane*> in_batch;
    for (const BatchItem& item : batch.items) in_batch.insert(item.lane);
    for (const std::shared_ptr<Lane>& lane : lanes_) {
      if (in_batch.count(lane.get()) == 0) continue;
      batch.lanes.push_back(lane);
      load_.queue_seconds.Add(absl::ToDoubleSeconds(now - lane->ready_since));
      for (const auto& capture : lane->receivers) {
        capture->queue_time += now - std::max(lane->ready_since, capture->ready_since);
        ++capture->in_flight;
        batch.receivers.emplace_back(lane.get(), capture);
        if (capture->source_full && 2 * lane->source.queued_tokens() < options_.max_batch_tokens * 4) {
          capture->source_full = false;
          deferred.Run([capture] { capture->queue.NotifySourceRoom(); });
        }
      }
      lane->ready_since = absl::InfiniteFuture();
    }
    // The lane that gave the first sequence goes to the end of the line.
    std::stable_partition(lanes_.begin(), lanes_.end(),
                          [&](const auto& lane) { return lane.get() != batch.items.front().lane; });
    return batch;
  }
}

void Replica::ExecutorLoop() {
  while (true) {
    const std::optional<Batch> batch = NextBatch();
    if (!batch.has_value()) return;
    RunItems(*batch, batch->items);
    AfterBatch(*batch);
  }
}

void Replica::AfterBatch(const Batch& batch) {
  Deferred deferred;
  absl::MutexLock lock(&engine_->mu_);
  for (const auto& [lane, capture] : batch.receivers) {
    if (capture->next_row >= capture->plan.max_budget) {
      engine_->StopCapture(capture, StopReason::kBudget, absl::OkStatus(), &deferred);
    }
    --capture->in_flight;
    engine_->MaybeEnd(capture, &deferred);
  }
  for (const std::shared_ptr<Lane>& lane : batch.lanes) engine_->MaybeEndLane(*lane, &deferred);
}

}  // namespace hookline
