#include "server/engine/executor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/engine/device_run.h"
#include "server/engine/rerun.h"
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
      const auto judge = [this](absl::Status status) { return health_->Judge(std::move(status), *transfer_); };
      batch->score->RunNext(*model_, std::move(batch->score_room), judge);
      scheduler_->ScoreMayRun(batch->score_id);
      continue;
    }
    RunBatch(batch->rerun != nullptr ? std::move(batch->rerun->deliveries) : PlanDeliveries(&*batch));
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

std::vector<std::unique_ptr<Delivery>> Executor::PlanDeliveries(Batch* batch) {
  ReadDatasets(batch);
  const auto items = std::make_shared<const std::vector<BatchItem>>(std::move(batch->items));
  std::vector<std::unique_ptr<Delivery>> deliveries;
  for (Batch::Member& member : batch->members) {
    const CaptureId capture = member.recipient.capture;
    if (!scheduler_->WantsRows(member.recipient)) continue;
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
    member.has_rows = true;
    if (!delivery->all_placed()) member.staged_bytes = delivery->Bytes();
    delivery->set_staged_bytes(member.staged_bytes);
    deliveries.push_back(std::move(delivery));
  }
  scheduler_->Planned(id_, *batch);
  return deliveries;
}

void Executor::RunBatch(std::vector<std::unique_ptr<Delivery>> deliveries) {
  if (deliveries.empty()) return;
  BatchInFlight batch;
  batch.launched = SteadyNow();
  batch.deliveries = std::move(deliveries);
  absl::Status status = RunItems(&batch, 0, batch.deliveries[0]->items().size());
  if (status.ok()) {
    absl::StatusOr<std::unique_ptr<TransferEvent>> copied = transfer_->Record();
    status = health_->Judge(copied.status(), *transfer_);
    if (copied.ok()) batch.copied = *std::move(copied);
  }
  if (!status.ok()) {
    for (const auto& delivery : batch.deliveries) delivery->Unstage(0);
    if (absl::IsUnavailable(status)) {
      auto rerun = std::make_shared<Rerun>();
      rerun->deliveries = std::move(batch.deliveries);
      rerun = scheduler_->RunAgain(id_, std::move(rerun));
      if (rerun == nullptr) return;
      // Every capture has ended, and the copier drops their deliveries.
      batch.deliveries = std::move(rerun->deliveries);
    }
    for (const auto& delivery : batch.deliveries) scheduler_->Failed(delivery->recipient().capture, status);
  }
  if (model_->info().device == "cpu") {
    batch.forward_time = SteadyNow() - batch.launched;
    for (const LaunchedPass& pass : batch.passes) {
      for (const LaunchedPass::Share& share : pass.shares) *batch.forward_time -= share.copy_time;
    }
  }
  scheduler_->Launched(id_, batch.passes);
  copier_->Add(std::move(batch));
}

absl::Status Executor::RunItems(BatchInFlight* batch, size_t begin, size_t end) {
  absl::Status status = health_->Judge(RunPass(batch, begin, end), *transfer_);
  if (status.ok() || absl::IsUnavailable(status)) return status;
  const std::vector<BatchItem>& items = batch->deliveries[0]->items();
  // A deterministic batch is not halved, because its shape affects the values of its rows.
  if (end - begin > 1 && !items[begin].deterministic) {
    const size_t middle = begin + (end - begin) / 2;
    RETURN_IF_ERROR(RunItems(batch, begin, middle));
    // The rows of the first half leave the device, so that the second half gets their memory.
    RETURN_IF_ERROR(health_->Judge(WaitForCopies(), *transfer_));
    for (const auto& delivery : batch->deliveries) delivery->DropCopied();
    return RunItems(batch, middle, end);
  }
  for (const auto& delivery : batch->deliveries) {
    if (delivery->RowsBefore(begin) == delivery->RowsBefore(end)) continue;
    delivery->EndAt(delivery->RowsBefore(begin));
    scheduler_->Failed(delivery->recipient().capture, status);
  }
  return absl::OkStatus();
}

absl::Status Executor::WaitForCopies() {
  ASSIGN_OR_RETURN(const std::unique_ptr<TransferEvent> copied, transfer_->Record());
  return copied->Wait();
}

absl::Status Executor::RunPass(BatchInFlight* batch, size_t begin, size_t end) {
  std::vector<Delivery*> wanted;
  for (const auto& delivery : batch->deliveries) {
    // A capture that failed in the batch's first half gets no rows of the second.
    if (scheduler_->WantsRows(delivery->recipient())) wanted.push_back(delivery.get());
  }
  if (wanted.empty()) return absl::OkStatus();
  PassPlan pass(wanted, batch->deliveries[0]->items(), begin, end, model_->hook_points());
  if (!pass.empty()) {
    if (absl::Status status = Compute(&pass); !status.ok()) {
      // Started copies must end before others write to the same slabs.
      (void)WaitForCopies();
      for (Delivery* delivery : wanted) delivery->Unstage(delivery->RowsBefore(begin));
      return status;
    }
    LaunchedPass& launched = batch->passes.emplace_back();
    launched.tokens = pass.tokens;
    launched.positions = pass.sequences * pass.positions;
    for (PassPlan::Member& member : pass.members) launched.shares.push_back(member.share);
    batch->tokens += pass.tokens;
    batch->layers = std::max(batch->layers, pass.layers);
  }
  for (Delivery* delivery : wanted) delivery->SetComplete(delivery->RowsBefore(end));
  return absl::OkStatus();
}

absl::Status Executor::Compute(PassPlan* pass) {
  std::vector<int> hook_points;
  for (const auto& [hook_point, uses] : pass->taps) hook_points.push_back(hook_point);
  absl::Status copied;
  absl::Status computed;
  std::vector<std::shared_ptr<RowIndex>> indices;  // by member
  const auto tap = [&](int hook_point, const at::Tensor& value) {
    for (const PassPlan::TapUse& use : pass->taps[hook_point]) {
      if (!copied.ok()) return;
      const absl::Time begin = SteadyNow();
      PassPlan::Member& member = pass->members[use.member];
      const RowLayout& layout = member.delivery->recipient().plan->hook_points[use.hook_point].layout;
      absl::StatusOr<std::shared_ptr<StagedRows>> staged =
          transfer_->Stage(value, *indices[use.member], use.rows, layout);
      copied = staged.ok() ? member.delivery->Stage(use.hook_point, member.first, use.rows, *staged, transfer_)
                           : staged.status();
      member.share.copy_time += SteadyNow() - begin;
    }
  };
  computed = CatchTorch([&]() -> absl::Status {
    // Everything that the pass reads is uploaded before it, so that nothing in it waits for the host.
    std::vector<int64_t> host_ids(static_cast<size_t>(pass->sequences * pass->positions));
    pass->FillTokenIds(host_ids.data());
    at::Tensor ids;
    RETURN_IF_ERROR(transfer_->Upload(host_ids, &ids));
    for (PassPlan::Member& member : pass->members) {
      ASSIGN_OR_RETURN(indices.emplace_back(), transfer_->MakeIndex(std::move(member.rows)));
    }
    return model_->Forward(ids.view({pass->sequences, pass->positions}), pass->Lengths(), hook_points, tap);
  });
  computed.Update(copied);
  return computed;
}

}  // namespace hookline
