#include "server/model/stages_transfer.h"

#include <ATen/ATen.h>

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

class Bindings final : public ThreadBinding {
 public:
  explicit Bindings(std::vector<std::unique_ptr<ThreadBinding>> bindings) : bindings_(std::move(bindings)) {}
  // Each binding restores what was current before it.
  ~Bindings() override {
    while (!bindings_.empty()) bindings_.pop_back();
  }

 private:
  std::vector<std::unique_ptr<ThreadBinding>> bindings_;
};

// The same row numbers on every device.
struct IndexOnEach final : public RowIndex {
  std::vector<std::shared_ptr<RowIndex>> indices;
};

class RowsOfStage final : public StagedRows {
 public:
  RowsOfStage(size_t stage, std::shared_ptr<StagedRows> rows) : stage_(stage), rows_(std::move(rows)) {}

  absl::Status DropBefore(int64_t first) override { return rows_->DropBefore(first); }
  ConversionLoss TakeLoss() override { return rows_->TakeLoss(); }
  StagedSums Sums(int64_t first, int64_t count) const override { return rows_->Sums(first, count); }

  size_t stage() const { return stage_; }
  StagedRows& rows() { return *rows_; }

 private:
  const size_t stage_;
  const std::shared_ptr<StagedRows> rows_;
};

class AllEvents final : public TransferEvent {
 public:
  explicit AllEvents(std::vector<std::unique_ptr<TransferEvent>> events) : events_(std::move(events)) {}

  absl::Status Wait() override {
    absl::Status status;
    for (const auto& event : events_) status.Update(event->Wait());
    return status;
  }

 private:
  const std::vector<std::unique_ptr<TransferEvent>> events_;
};

class StagesTransfer final : public Transfer {
 public:
  StagesTransfer(std::vector<at::Device> devices, std::vector<std::unique_ptr<Transfer>> transfers)
      : devices_(std::move(devices)), transfers_(std::move(transfers)) {}

  absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() override {
    std::vector<std::unique_ptr<ThreadBinding>> bindings;
    // The first stage's device is bound last, so that it becomes the current device.
    for (auto transfer = transfers_.rbegin(); transfer != transfers_.rend(); ++transfer) {
      ASSIGN_OR_RETURN(bindings.emplace_back(), (*transfer)->BindThread());
    }
    return std::make_unique<Bindings>(std::move(bindings));
  }

  absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) override {
    return transfers_.front()->Upload(values, uploaded);
  }

  absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) override {
    auto index = std::make_shared<IndexOnEach>();
    for (const auto& transfer : transfers_) {
      ASSIGN_OR_RETURN(index->indices.emplace_back(), transfer->MakeIndex(rows));
    }
    return index;
  }

  absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index, int64_t rows,
                                                    const RowLayout& layout) override {
    size_t stage = 0;
    while (stage < devices_.size() && devices_[stage] != value.device()) ++stage;
    if (stage == devices_.size()) {
      return absl::InternalError(
          absl::StrCat("a hook point lies on ", value.device().str(), ", not on a stage's device"));
    }
    const RowIndex& own = *static_cast<const IndexOnEach&>(index).indices[stage];
    ASSIGN_OR_RETURN(std::shared_ptr<StagedRows> staged, transfers_[stage]->Stage(value, own, rows, layout));
    return std::make_shared<RowsOfStage>(stage, std::move(staged));
  }

  absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) override {
    auto& staged = static_cast<RowsOfStage&>(rows);
    return transfers_[staged.stage()]->Copy(staged.rows(), first, count, destination);
  }

  absl::StatusOr<std::unique_ptr<TransferEvent>> Record() override {
    std::vector<std::unique_ptr<TransferEvent>> events;
    for (const auto& transfer : transfers_) {
      ASSIGN_OR_RETURN(events.emplace_back(), transfer->Record());
    }
    return std::make_unique<AllEvents>(std::move(events));
  }

  absl::Status Check() override {
    absl::Status status;
    for (const auto& transfer : transfers_) status.Update(transfer->Check());
    return status;
  }

 private:
  const std::vector<at::Device> devices_;
  const std::vector<std::unique_ptr<Transfer>> transfers_;  // by device
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transfer>> MakeStagesTransfer(const std::vector<std::string>& devices) {
  std::vector<std::unique_ptr<Transfer>> transfers;
  for (const std::string& device : devices) {
    ASSIGN_OR_RETURN(transfers.emplace_back(), MakeTransfer(device));
  }
  if (transfers.size() == 1) return std::move(transfers.front());
  // The names are valid, since each has a transfer.
  std::vector<at::Device> places;
  for (const std::string& device : devices) places.emplace_back(device);
  return std::make_unique<StagesTransfer>(std::move(places), std::move(transfers));
}

}  // namespace hookline
