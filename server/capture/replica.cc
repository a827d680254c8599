#include <ATen/ATen.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/capture/engine_impl.h"

namespace hookline {
namespace {

// One is computed while the rows of the one before are copied; more would only delay who comes next.
constexpr int kMaxLaunchedBatches = 2;

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
  Wake();
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
    const absl::Time now = absl::Now();
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
      wake_executor_.WaitWithDeadline(&engine_->mu_, look_again);
      continue;
    }
    // Sequences that do not fill a batch wait a moment for captures that are between two of theirs.
    waits_for_more &=
        more_may_come && queued_tokens < options_.max_batch_tokens && now < oldest + options_.max_batch_delay;
    if (waits_for_more) {
      wake_executor_.WaitWithDeadline(&engine_->mu_, std::min(look_again, oldest + options_.max_batch_delay));
      continue;
    }

    Batch batch;
    batch.items = FormBatch(ready, {options_.max_batch_tokens, model_->info().mixes_lengths});
    std::set<const Lane*> in_batch;
    for (const BatchItem& item : batch.items) in_batch.insert(item.lane);
    for (const std::shared_ptr<Lane>& lane : lanes_) {
      if (in_batch.count(lane.get()) == 0) continue;
      batch.lanes.push_back(lane);
      load_.queue_seconds.Add(absl::ToDoubleSeconds(now - lane->ready_since));
      for (const auto& capture : lane->receivers) {
        capture->queue_time += now - std::max(lane->ready_since, capture->arrived);
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

void Replica::RunItems(const Batch& batch, absl::Span<const BatchItem> items) {
  if (items.empty()) return;
  const absl::Status status = RunOnce(batch, items);
  if (status.ok()) return;
  if (items.size() > 1) {
    RunItems(batch, items.subspan(0, items.size() / 2));
    RunItems(batch, items.subspan(items.size() / 2));
    return;
  }
  Deferred deferred;
  absl::MutexLock lock(&engine_->mu_);
  for (const auto& [lane, capture] : batch.receivers) {
    if (lane == items[0].lane) engine_->StopCapture(capture, StopReason::kError, status, &deferred);
  }
}

// One forward pass. When it fails, every capture is as it was before.
absl::Status Replica::RunOnce(const Batch& batch, absl::Span<const BatchItem> items) {
  std::vector<std::shared_ptr<Delivery>> deliveries;
  std::vector<std::pair<RunningCapture*, int64_t>> rows_before;
  std::vector<std::pair<std::shared_ptr<RunningCapture>, absl::Status>> refused;
  std::vector<bool> used(items.size());
  for (const auto& [lane, capture] : batch.receivers) {
    if (capture->cancelled) continue;
    {
      // A capture that failed on the batch's first half takes nothing of the second.
      absl::MutexLock lock(&engine_->mu_);
      if (capture->stop.has_value() && capture->stop->reason == StopReason::kError) continue;
    }
    const int64_t before = capture->next_row;
    std::shared_ptr<Delivery> delivery = PlanDelivery(capture, lane, items);
    if (delivery == nullptr) continue;
    PlaceGroups(*delivery, options_.slab_bytes);
    if (const int64_t waiting = delivery->UnplacedBytes(); waiting > options_.max_pending_bytes) {
      capture->next_row = before;
      refused.emplace_back(
          capture, absl::ResourceExhaustedError(absl::StrCat(
                       "rows of one batch that wait on the device for the capture's window take ", waiting,
                       " bytes, more than the ", options_.max_pending_bytes,
                       " that the server allows (--max-pending-bytes); ask for fewer hook points or rows, or send "
                       "shorter sequences")));
      continue;
    }
    rows_before.emplace_back(capture.get(), before);
    for (const Delivery::Origin& origin : delivery->origins) used[origin.item] = true;
    deliveries.push_back(std::move(delivery));
  }
  if (!refused.empty()) {
    Deferred deferred;
    absl::MutexLock lock(&engine_->mu_);
    for (const auto& [capture, status] : refused) {
      engine_->StopCapture(capture, StopReason::kError, status, &deferred);
    }
  }

  // Sequences of which no row is wanted are not run.
  std::vector<int64_t> place(items.size(), -1);
  int64_t count = 0;
  int64_t positions = 0;
  int64_t tokens = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!used[i]) continue;
    place[i] = count++;
    const int64_t length = static_cast<int64_t>(items[i].sequence.ids.size());
    positions = std::max(positions, length);
    tokens += length;
  }
  if (count == 0) return absl::OkStatus();

  // Which deliveries want a hook point of the model, and as which of their own.
  std::map<int, std::vector<std::pair<Delivery*, int>>> takers;
  std::vector<std::vector<int64_t>> batch_rows(deliveries.size());
  std::map<const Delivery*, size_t> index;
  std::map<std::pair<const Delivery*, int>, int64_t> rows_wanted;
  for (size_t d = 0; d < deliveries.size(); ++d) {
    const Delivery& delivery = *deliveries[d];
    index[&delivery] = d;
    batch_rows[d].reserve(delivery.origins.size());
    for (const Delivery::Origin& origin : delivery.origins) {
      batch_rows[d].push_back(place[origin.item] * positions + origin.position);
    }
    for (const Delivery::Group& group : delivery.groups) {
      for (const Delivery::PlacedChunk& chunk : group.chunks) {
        rows_wanted[{&delivery, chunk.hook_point}] = chunk.first + chunk.rows;
      }
    }
  }
  std::vector<int> hook_points;
  for (const auto& [key, rows] : rows_wanted) {
    takers[key.first->capture->plan.hook_points[key.second].index].emplace_back(const_cast<Delivery*>(key.first),
                                                                                key.second);
  }
  double layers = 1;
  for (const auto& [hook_point, list] : takers) {
    hook_points.push_back(hook_point);
    layers = std::max<double>(layers, model_->hook_points()[hook_point].layer + 1);
  }

  FinishedBatch finished;
  finished.launched = absl::Now();
  finished.tokens = tokens;
  finished.layers = layers;
  std::vector<absl::Duration> copy_times(deliveries.size());
  absl::Status copy_status;
  absl::Status status;
  try {
    at::Tensor ids = at::zeros({count, positions}, at::kLong);
    int64_t* out = ids.data_ptr<int64_t>();
    for (size_t i = 0; i < items.size(); ++i) {
      if (place[i] >= 0) {
        std::copy(items[i].sequence.ids.begin(), items[i].sequence.ids.end(), out + place[i] * positions);
      }
    }
    if (model_->info().device != "cpu") ids = ids.to(c10::Device(model_->info().device), /*non_blocking=*/true);
    status = model_->Forward(ids, hook_points, [&](int hook_point, const at::Tensor& value) {
      for (const auto& [delivery, own] : takers[hook_point]) {
        if (!copy_status.ok()) return;
        const absl::Time begin = absl::Now();
        const size_t d = index[delivery];
        auto staged =
            transfer_->Stage(value, batch_rows[d].data(), rows_wanted[{delivery, own}], delivery->capture->plan.dtype);
        if (!staged.ok()) {
          copy_status = staged.status();
          return;
        }
        delivery->staged[own] = *std::move(staged);
        StartCopies(*delivery, own, /*first_group=*/0, &copy_status);
        copy_times[d] += absl::Now() - begin;
      }
    });
  } catch (const c10::Error& error) {
    status = absl::InternalError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (status.ok()) status = copy_status;
  auto event = transfer_->Record();
  if (status.ok()) status = event.status();
  if (!status.ok()) {
    // Copies that were started end before their slabs go back.
    if (event.ok()) (void)(*event)->Wait();
    for (const auto& [capture, before] : rows_before) capture->next_row = before;
    return status;
  }
  finished.event = *std::move(event);
  absl::Duration forward_time = absl::Now() - finished.launched;
  for (absl::Duration copy_time : copy_times) forward_time -= copy_time;
  if (model_->info().device == "cpu") finished.forward_time = forward_time;

  Deferred deferred;
  absl::MutexLock lock(&engine_->mu_);
  const double fill = static_cast<double>(tokens) / static_cast<double>(count * positions);
  load_.batch_fill.Add(fill);
  load_.tokens += tokens;
  for (size_t d = 0; d < deliveries.size(); ++d) {
    const std::shared_ptr<Delivery>& delivery = deliveries[d];
    RunningCapture& capture = *delivery->capture;
    capture.unplaced = delivery->placed < delivery->groups.size();
    ++capture.in_flight;
    ++capture.batches;
    capture.batch_fill_sum += fill;
    capture.copy_time += copy_times[d];
    std::set<size_t> own_items;
    for (const Delivery::Origin& origin : delivery->origins) own_items.insert(origin.item);
    for (size_t item : own_items) capture.tokens += static_cast<int64_t>(items[item].sequence.ids.size());
    capture.sequences += static_cast<int64_t>(own_items.size());
  }
  finished.deliveries = std::move(deliveries);
  ++launched_batches_;
  finished_.push_back(std::move(finished));
  wake_copier_.Signal();
  return absl::OkStatus();
}

// Copies of one hook point, for the groups from `first_group` on that are placed.
void Replica::StartCopies(Delivery& delivery, int hook_point, size_t first_group, absl::Status* status) {
  StagedRows& staged = *delivery.staged[hook_point];
  const int64_t row_bytes = delivery.capture->plan.hook_points[hook_point].row_bytes;
  for (size_t g = first_group; g < delivery.placed; ++g) {
    for (const Delivery::PlacedChunk& chunk : delivery.groups[g].chunks) {
      if (chunk.hook_point != hook_point) continue;
      int64_t first = chunk.first;
      for (const SlabSpan& span : chunk.spans) {
        const int64_t rows = span.bytes / row_bytes;
        if (status->ok()) *status = transfer_->Copy(staged, first, rows, span.data());
        first += rows;
      }
    }
  }
  if (status->ok() && delivery.placed < delivery.groups.size()) {
    *status = staged.DropBefore(delivery.groups[delivery.placed].first);
  }
}

}  // namespace hookline
