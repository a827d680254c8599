#include "tests/engine/late_transfer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {
namespace {

// The copies that have not been waited for.
struct Outstanding {
  absl::Mutex mutex;
  std::mt19937_64 random ABSL_GUARDED_BY(mutex);
  std::vector<std::pair<int64_t, std::function<absl::Status()>>> copies ABSL_GUARDED_BY(mutex);
  int64_t started ABSL_GUARDED_BY(mutex) = 0;
};

class LateRows : public StagedRows {
 public:
  LateRows(std::shared_ptr<StagedRows> rows, int64_t row_bytes) : rows(std::move(rows)), row_bytes(row_bytes) {}
  // Keeps all rows: those that are still to be copied must stay, as a real device keeps them until then.
  absl::Status DropBefore(int64_t) override { return absl::OkStatus(); }
  ConversionLoss TakeLoss() override { return rows->TakeLoss(); }
  StagedSums Sums(int64_t first, int64_t count) const override { return rows->Sums(first, count); }

  const std::shared_ptr<StagedRows> rows;
  const int64_t row_bytes;
};

class LateEvent : public TransferEvent {
 public:
  LateEvent(std::shared_ptr<Outstanding> outstanding, int64_t before)
      : outstanding_(std::move(outstanding)), before_(before) {}

  // Copies with the mutex held, so that others that wait for the same copies return when these are done.
  absl::Status Wait() override {
    absl::MutexLock lock(&outstanding_->mutex);
    auto& copies = outstanding_->copies;
    std::shuffle(copies.begin(), copies.end(), outstanding_->random);
    const auto due =
        std::stable_partition(copies.begin(), copies.end(), [&](const auto& copy) { return copy.first >= before_; });
    absl::Status status;
    for (auto copy = due; copy != copies.end(); ++copy) status.Update(copy->second());
    copies.erase(due, copies.end());
    return status;
  }

 private:
  const std::shared_ptr<Outstanding> outstanding_;
  const int64_t before_;
};

class LateTransfer : public Transfer {
 public:
  explicit LateTransfer(uint64_t seed) : host_(*MakeTransfer("cpu")), outstanding_(std::make_shared<Outstanding>()) {
    absl::MutexLock lock(&outstanding_->mutex);
    outstanding_->random.seed(seed);
  }

  absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() override { return host_->BindThread(); }
  absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) override {
    return host_->Upload(values, uploaded);
  }
  absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) override {
    return host_->MakeIndex(std::move(rows));
  }
  absl::Status Check() override { return host_->Check(); }

  absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index, int64_t rows,
                                                    const RowLayout& layout) override {
    auto staged = host_->Stage(value.clone(), index, rows, layout);
    if (!staged.ok()) return staged.status();
    return std::make_shared<LateRows>(*std::move(staged), layout.bytes());
  }

  absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) override {
    auto& late = static_cast<LateRows&>(rows);
    std::memset(destination, 0xff, static_cast<size_t>(count * late.row_bytes));
    absl::MutexLock lock(&outstanding_->mutex);
    outstanding_->copies.emplace_back(outstanding_->started++, [=, host = host_, staged = late.rows] {
      return host->Copy(*staged, first, count, destination);
    });
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<TransferEvent>> Record() override {
    absl::MutexLock lock(&outstanding_->mutex);
    return std::make_unique<LateEvent>(outstanding_, outstanding_->started);
  }

 private:
  const std::shared_ptr<Transfer> host_;
  const std::shared_ptr<Outstanding> outstanding_;
};

}  // namespace

std::unique_ptr<Transfer> MakeLateTransfer(uint64_t seed) { return std::make_unique<LateTransfer>(seed); }

}  // namespace hookline
