// The executor's thread of a replica: one forward pass, from the rows that are wanted of it to their copies' start.
#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/capture/engine_impl.h"

namespace hookline {

void Replica::RunItems(const Batch& batch, absl::Span<const BatchItem> items) {
  if (items.empty()) return;
  const absl::Status status = RunPass(batch, items);
  if (status.ok()) return;
  // A deterministic batch's shape is part of its rows.
  if (items.size() > 1 && !items[0].lane->deterministic) {
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

absl::Status Replica::RunPass(const Batch& batch, absl::Span<const BatchItem> items) {
  Pass pass = PlanPass(batch, items);
  if (pass.sequences == 0) return absl::OkStatus();
  const absl::Time launched = absl::Now();
  const absl::Status computed = Compute(&pass, items);
  absl::StatusOr<std::unique_ptr<TransferEvent>> event = transfer_->Record();
  const absl::Status status = computed.ok() ? event.status() : computed;
  if (!status.ok()) {
    // Copies that were started end before their slabs go back.
    if (event.ok()) (void)(*event)->Wait();
    for (const Pass::Part& part : pass.parts) part.delivery->capture->next_row = part.delivery->first_row;
    return status;
  }
  FinishedBatch finished;
  finished.event = *std::move(event);
  finished.launched = launched;
  finished.tokens = pass.tokens;
  finished.layers = pass.layers;
  if (model_->info().device == "cpu") {
    finished.forward_time = absl::Now() - launched;
    for (const Pass::Part& part : pass.parts) finished.forward_time -= part.copy_time;
  }

  absl::MutexLock lock(&engine_->mu_);
  const double fill = static_cast<double>(pass.tokens) / static_cast<double>(pass.sequences * pass.positions);
  load_.batch_fill.Add(fill);
  load_.tokens += pass.tokens;
  for (Pass::Part& part : pass.parts) {
    RunningCapture& capture = *part.delivery->capture;
    capture.unplaced = part.delivery->placed < part.delivery->groups.size();
    ++capture.in_flight;
    ++capture.batches;
    capture.batch_fill_sum += fill;
    capture.copy_time += part.copy_time;
    capture.sequences += part.sequences;
    capture.tokens += part.tokens;
    finished.deliveries.push_back(std::move(part.delivery));
  }
  ++launched_batches_;
  finished_.push_back(std::move(finished));
  wake_copier_.Signal();
  return absl::OkStatus();
}

Replica::Pass Replica::PlanPass(const Batch& batch, absl::Span<const BatchItem> items) {
  Pass pass;
  std::vector<bool> runs(items.size());
  std::vector<std::pair<std::shared_ptr<RunningCapture>, absl::Status>> refused;
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
    Pass::Part part;
    // Sequences of which no row is wanted are not run, except where a batch's shape is fixed.
    std::vector<bool> wanted(items.size());
    for (const Delivery::Origin& origin : delivery->origins) wanted[origin.item] = true;
    for (size_t i = 0; i < items.size(); ++i) {
      if (items[i].lane != lane || !(wanted[i] || lane->deterministic)) continue;
      runs[i] = true;
      ++part.sequences;
      part.tokens += static_cast<int64_t>(items[i].sequence.ids.size());
    }
    part.delivery = std::move(delivery);
    pass.parts.push_back(std::move(part));
  }
  if (!refused.empty()) {
    Deferred deferred;
    absl::MutexLock lock(&engine_->mu_);
    for (const auto& [capture, status] : refused) {
      engine_->StopCapture(capture, StopReason::kError, status, &deferred);
    }
  }

  pass.places.assign(items.size(), -1);
  for (size_t i = 0; i < items.size(); ++i) {
    if (!runs[i]) continue;
    const int64_t length = static_cast<int64_t>(items[i].sequence.ids.size());
    pass.places[i] = pass.sequences++;
    pass.positions = std::max(pass.positions, length);
    pass.tokens += length;
  }
  for (size_t p = 0; p < pass.parts.size(); ++p) {
    Pass::Part& part = pass.parts[p];
    part.rows.reserve(part.delivery->origins.size());
    for (const Delivery::Origin& origin : part.delivery->origins) {
      part.rows.push_back(pass.places[origin.item] * pass.positions + origin.position);
    }
    // Rows come in the order of the groups, so the last group that a hook point is in says how many of them it takes.
    std::map<int, int64_t> rows_of;
    for (const Delivery::Group& group : part.delivery->groups) {
      for (const Delivery::PlacedChunk& chunk : group.chunks) rows_of[chunk.hook_point] = chunk.first + chunk.rows;
    }
    for (const auto& [hook_point, rows] : rows_of) {
      const int tapped = part.delivery->capture->plan.hook_points[hook_point].index;
      pass.takers[tapped].push_back({p, hook_point, rows});
      pass.layers = std::max<double>(pass.layers, model_->hook_points()[tapped].layer + 1);
    }
  }
  return pass;
}

absl::Status Replica::Compute(Pass* pass, absl::Span<const BatchItem> items) {
  std::vector<int> hook_points;
  for (const auto& [hook_point, takers] : pass->takers) hook_points.push_back(hook_point);
  absl::Status copied;
  absl::Status computed;
  try {
    at::Tensor ids = at::zeros({pass->sequences, pass->positions}, at::kLong);
    std::vector<int64_t> lengths(static_cast<size_t>(pass->sequences));
    int64_t* out = ids.data_ptr<int64_t>();
    for (size_t i = 0; i < items.size(); ++i) {
      if (pass->places[i] < 0) continue;
      const std::vector<uint32_t>& from = items[i].sequence.ids;
      std::copy(from.begin(), from.end(), out + pass->places[i] * pass->positions);
      lengths[static_cast<size_t>(pass->places[i])] = static_cast<int64_t>(from.size());
    }
    if (model_->info().device != "cpu") ids = ids.to(c10::Device(model_->info().device), /*non_blocking=*/true);
    computed = model_->Forward(ids, lengths, hook_points, [&](int hook_point, const at::Tensor& value) {
      for (const Pass::Taker& taker : pass->takers[hook_point]) {
        if (!copied.ok()) return;
        const absl::Time begin = absl::Now();
        Pass::Part& part = pass->parts[taker.part];
        Delivery& delivery = *part.delivery;
        auto staged = transfer_->Stage(value, part.rows.data(), taker.rows, delivery.capture->plan.dtype);
        if (!staged.ok()) {
          copied = staged.status();
          return;
        }
        delivery.staged[taker.hook_point] = *std::move(staged);
        StartCopies(delivery, taker.hook_point, /*first_group=*/0, &copied);
        part.copy_time += absl::Now() - begin;
      }
    });
  } catch (const c10::Error& error) {
    computed = absl::InternalError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    computed = absl::InternalError(error.what());
  }
  computed.Update(copied);
  return computed;
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
