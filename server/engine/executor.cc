#include "server/engine/executor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/engine/device_run.h"
#include "server/model/catch_torch.h"

namespace hookline {

void Executor::Run() {
  const absl::StatusOr<std::unique_ptr<ThreadBinding>> binding = transfer_->BindThread();
  tried_ = binding.ok() ? TryFullBatch() : binding.status();
  const bool can_run = tried_.ok();
  ready_.Notify();
  if (!can_run) return;
  while (std::optional<Batch> batch = scheduler_->NextBatch(id_)) {
    if (batch->score != nullptr) {
      (void)health_->Judge(batch->score->RunNext(*model_, std::move(batch->score_room)), *transfer_);
      scheduler_->ScoreMayRun(batch->score_id);
      continue;
    }
    ReadDatasets(&*batch);
    RunItems(&*batch, batch->items);
    scheduler_->BatchDone(*batch);
  }
}

absl::Status Executor::TryFullBatch() {
  const ModelInfo& info = model_->info();
  if (info.device == "cpu") return absl::OkStatus();
  const int64_t positions = std::max<int64_t>(1, std::min(info.context_length, max_batch_tokens_));
  const int64_t sequences = std::max<int64_t>(1, max_batch_tokens_ / positions);
  absl::Status status = TryBatch(sequences, positions);
  if (!absl::IsResourceExhausted(status)) return status;
  return absl::ResourceExhaustedError(absl::StrCat(
      "model '", info.name, "': a forward pass of ", sequences, " sequences of ", positions, " tokens does not fit on ",
      info.device, " beside the weights; lower --max-batch-tokens: ", status.message()));
}

absl::Status Executor::TryBatch(int64_t sequences, int64_t positions) {
  std::vector<int64_t> rows(static_cast<size_t>(sequences * positions));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);
  const int last = model_->hook_points().size() - 1;
  const RowLayout layout{model_->info().dtype, model_->hook_points()[last].width, /*top_k=*/0};
  return CatchTorch([&]() -> absl::Status {
    at::Tensor ids;
    RETURN_IF_ERROR(transfer_->Upload(std::vector<int64_t>(rows.size(), 0), &ids));
    ASSIGN_OR_RETURN(const std::shared_ptr<RowIndex> index, transfer_->MakeIndex(rows));
    absl::StatusOr<std::shared_ptr<StagedRows>> staged;
    const auto tap = [&](int, const at::Tensor& value) {
      staged = transfer_->Stage(value, *index, static_cast<int64_t>(rows.size()), layout);
    };
    RETURN_IF_ERROR(model_->Forward(ids.view({sequences, positions}), /*lengths=*/{}, {last}, tap));
    RETURN_IF_ERROR(staged.status());
    return transfer_->Check();
  });
}

void Executor::ReadDatasets(Batch* batch) {
  std::map<FlowId, absl::Status> failed;
  for (BatchItem& item : batch->items) {
    if (!item.sequence.ids.empty() || failed.count(item.flow) != 0) continue;
    // Every member of a flow has the same dataset.
    const auto member = std::find_if(batch->members.begin(), batch->members.end(),
                                     [&](const Batch::Member& m) { return m.flow == item.flow; });
    const DatasetRange& range = member->recipient.plan->dataset;
    absl::Status read = range.Read(item.sequence.index, model_->info().vocabulary_size, &item.sequence.ids);
    if (!read.ok()) failed[item.flow] = std::move(read);
  }
  if (failed.empty()) return;
  const auto has_failed = [&](const BatchItem& item) { return failed.count(item.flow) != 0; };
  batch->items.erase(std::remove_if(batch->items.begin(), batch->items.end(), has_failed), batch->items.end());
  for (const Batch::Member& member : batch->members) {
    const auto found = failed.find(member.flow);
    if (found != failed.end()) scheduler_->Failed(member.recipient.capture, found->second);
  }
}

void Executor::RunItems(Batch* batch, absl::Span<const BatchItem> items) {
  if (items.empty()) return;
  const absl::Status status = health_->Judge(RunPass(batch, items), *transfer_);
  // The captures of a lost device have ended.
  if (status.ok() || absl::IsUnavailable(status)) return;
  // A deterministic batch's shape is part of its rows.
  if (items.size() > 1 && !items[0].deterministic) {
    RunItems(batch, items.subspan(0, items.size() / 2));
    RunItems(batch, items.subspan(items.size() / 2));
    return;
  }
  for (const Batch::Member& member : batch->members) {
    if (member.flow == items[0].flow) scheduler_->Failed(member.recipient.capture, status);
  }
}

absl::Status Executor::RunPass(Batch* batch, absl::Span<const BatchItem> items) {
  std::vector<RowCursor> cursors;
  for (const Batch::Member& member : batch->members) cursors.push_back(member.cursor);

  PassPlan pass(PlanDeliveries(batch, items), items, model_->hook_points());
  if (pass.empty()) return absl::OkStatus();
  PassInFlight in_flight;
  in_flight.launched = SteadyNow();
  absl::Status status = Compute(&pass, items);
  absl::StatusOr<std::unique_ptr<TransferEvent>> copied = transfer_->Record();
  status.Update(copied.status());
  if (!status.ok()) {
    // Started copies must end before their slabs go back.
    if (copied.ok()) (void)(*copied)->Wait();
    for (size_t i = 0; i < cursors.size(); ++i) batch->members[i].cursor = cursors[i];
    return status;
  }
  in_flight.copied = *std::move(copied);
  if (model_->info().device == "cpu") {
    in_flight.forward_time = SteadyNow() - in_flight.launched;
    for (const PassPlan::Part& part : pass.parts) *in_flight.forward_time -= part.share.copy_time;
  }
  for (Batch::Member& member : batch->members) {
    for (const PassPlan::Part& part : pass.parts) {
      if (part.share.capture == member.recipient.capture) member.has_unplaced |= !part.delivery->all_placed();
    }
  }
  Launch(std::move(pass), std::move(in_flight));
  return absl::OkStatus();
}

std::vector<std::unique_ptr<Delivery>> Executor::PlanDeliveries(Batch* batch, absl::Span<const BatchItem> items) {
  std::vector<std::unique_ptr<Delivery>> deliveries;
  for (Batch::Member& member : batch->members) {
    const CaptureId capture = member.recipient.capture;
    // A capture that failed in the batch's first half gets no rows of the second.
    if (!member.recipient.events->TakesChunks() || !scheduler_->WantsRows(capture)) continue;
    std::unique_ptr<Delivery> delivery = Delivery::Plan(&member, items);
    if (delivery == nullptr) continue;
    if (!member.has_unplaced) delivery->AssignSlabs();
    if (const int64_t waiting = delivery->UnplacedBytes(); waiting > max_pending_bytes_) {
      scheduler_->Failed(capture, absl::ResourceExhaustedError(absl::StrCat(
                                      "rows of one batch that wait on the device for the capture's window take ",
                                      waiting, " bytes, more than the ", max_pending_bytes_,
                                      " that the server allows (--max-pending-bytes); ask for fewer hook points or "
                                      "rows, or send shorter sequences")));
      continue;
    }
    deliveries.push_back(std::move(delivery));
  }
  return deliveries;
}

absl::Status Executor::Compute(PassPlan* pass, absl::Span<const BatchItem> items) {
  std::vector<int> hook_points;
  for (const auto& [hook_point, uses] : pass->taps) hook_points.push_back(hook_point);
  absl::Status copied;
  absl::Status computed;
  std::vector<std::shared_ptr<RowIndex>> indices;  // by part
  const auto tap = [&](int hook_point, const at::Tensor& value) {
    for (const PassPlan::TapUse& use : pass->taps[hook_point]) {
      if (!copied.ok()) return;
      const absl::Time begin = SteadyNow();
      PassPlan::Part& part = pass->parts[use.part];
      const RowLayout& layout = part.delivery->recipient().plan->hook_points[use.hook_point].layout;
      absl::StatusOr<std::shared_ptr<StagedRows>> staged =
          transfer_->Stage(value, *indices[use.part], use.rows, layout);
      copied = staged.ok() ? part.delivery->Stage(use.hook_point, *std::move(staged), transfer_) : staged.status();
      part.share.copy_time += SteadyNow() - begin;
    }
  };
  computed = CatchTorch([&]() -> absl::Status {
    // Everything that the pass reads is uploaded before it, so that nothing in it waits for the host.
    std::vector<int64_t> host_ids(static_cast<size_t>(pass->sequences * pass->positions));
    pass->FillTokenIds(items, host_ids.data());
    at::Tensor ids;
    RETURN_IF_ERROR(transfer_->Upload(host_ids, &ids));
    for (PassPlan::Part& part : pass->parts) {
      ASSIGN_OR_RETURN(indices.emplace_back(), transfer_->MakeIndex(std::move(part.rows)));
    }
    return model_->Forward(ids.view({pass->sequences, pass->positions}), pass->Lengths(items), hook_points, tap);
  });
  computed.Update(copied);
  return computed;
}

void Executor::Launch(PassPlan pass, PassInFlight in_flight) {
  LaunchedPass launched;
  launched.tokens = in_flight.tokens = pass.tokens;
  launched.positions = pass.sequences * pass.positions;
  in_flight.layers = pass.layers;
  for (PassPlan::Part& part : pass.parts) {
    if (!part.delivery->all_placed()) part.share.staged_bytes = part.delivery->Bytes();
    launched.shares.push_back(part.share);
    in_flight.deliveries.push_back(std::move(part.delivery));
  }
  scheduler_->Launched(id_, launched);
  copier_->Add(std::move(in_flight));
}

}  // namespace hookline
