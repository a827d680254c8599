// The way from a device to the host.
#include "server/model/transfer.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "server/model/runtime.h"
#include "server/model/torch_compat.h"
#include "tests/support/fake_device.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kRows = 1000, kWidth = 24;
constexpr RowLayout kLayout{Dtype::kFloat32, kWidth, /*top_k=*/0};

class DeviceTransferTest : public ::testing::Test {
 protected:
  DeviceTransferTest() {
    FakeDevice::Reset();
    binding_ = transfer_->BindThread().value();
  }

  // Value j of row i is 100 i + j.
  static at::Tensor Value() {
    return (at::arange(kRows, at::kFloat).mul_(100).unsqueeze(1) + at::arange(kWidth, at::kFloat))
        .to(c10::Device(FakeDevice::Name(1)));
  }

  std::shared_ptr<StagedRows> Stage(const at::Tensor& value, const std::vector<int64_t>& rows) {
    const auto index = transfer_->MakeIndex(rows).value();
    return transfer_->Stage(value, *index, static_cast<int64_t>(rows.size()), kLayout).value();
  }

  c10::InferenceMode inference_;
  const std::unique_ptr<Transfer> transfer_ = MakeTransfer(FakeDevice::Name(1)).value();
  std::unique_ptr<ThreadBinding> binding_;
  const std::shared_ptr<uint8_t> memory_ =
      AllocateHostMemory(kRows * kWidth * int64_t{sizeof(float)}, FakeDevice::Name(1)).value();
  float* const slab_ = reinterpret_cast<float*>(memory_.get());
};

TEST_F(DeviceTransferTest, RowsArriveWhenTheirEventIsWaitedForAndNotBefore) {
  const auto rows = Stage(Value(), {3, 5, 8});
  ASSERT_TRUE(transfer_->Copy(*rows, 1, 2, memory_.get()).ok());
  const auto event = transfer_->Record().value();
  EXPECT_TRUE(std::isnan(slab_[0]));
  ASSERT_TRUE(event->Wait().ok());
  EXPECT_EQ(slab_[0], 500);
  EXPECT_EQ(slab_[kWidth + 1], 801);
  EXPECT_EQ(FakeDevice::counters().host_waits, 0) << "CUDA's wait spins on a core";
  EXPECT_EQ(FakeDevice::counters().pageable_copies, 0);
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

// A slow client's rows would otherwise hold the residual stream of the whole batch, uncounted.
TEST_F(DeviceTransferTest, AStagedRunKeepsItsOwnBytesAndNotTheBatchs) {
  const int64_t before = FakeDevice::AllocatedBytes(1);
  std::vector<int64_t> run(16);
  std::iota(run.begin(), run.end(), 100);
  const auto rows = Stage(Value(), run);
  EXPECT_LE(FakeDevice::AllocatedBytes(1) - before, 2 * 16 * kWidth * int64_t{sizeof(float)});
}

TEST_F(DeviceTransferTest, AStagedRunOfMostRowsIsNotCopied) {
  const at::Tensor value = Value();
  const int64_t launches = FakeDevice::counters().launches;
  std::vector<int64_t> run(kRows);
  std::iota(run.begin(), run.end(), 0);
  const auto rows = Stage(value, run);
  EXPECT_EQ(FakeDevice::counters().launches, launches);
}

TEST_F(DeviceTransferTest, TheDeviceSumsUpManyRows) {
  constexpr int64_t kWide = 128;  // 512 kB
  const at::Tensor value = at::arange(kRows * kWide, at::kFloat).reshape({kRows, kWide});
  std::vector<int64_t> run(kRows);
  std::iota(run.begin(), run.end(), 0);
  const auto index = transfer_->MakeIndex(run).value();
  const auto rows =
      transfer_->Stage(value.to(c10::Device(FakeDevice::Name(1))), *index, kRows, {Dtype::kFloat32, kWide}).value();
  EXPECT_TRUE(rows->Sums(0, 1).sums.empty()) << "nothing was copied";
  const auto memory = AllocateHostMemory(2 * kWide * int64_t{sizeof(float)}, FakeDevice::Name(1)).value();
  ASSERT_TRUE(transfer_->Copy(*rows, 2, 2, memory.get()).ok());
  ASSERT_TRUE(transfer_->Record().value()->Wait().ok());
  const StagedSums known = rows->Sums(2, 2);
  ASSERT_EQ(known.sums.size(), 2);
  ASSERT_EQ(known.norms.size(), 2);
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_FLOAT_EQ(known.sums[i], value[2 + i].sum().item<float>());
    EXPECT_FLOAT_EQ(known.norms[i], value[2 + i].norm().item<float>());
  }
  EXPECT_EQ(FakeDevice::counters().host_waits, 0);
  EXPECT_EQ(FakeDevice::counters().pageable_copies, 0);
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

// The sums that the device computed beside the rows must not be freed before they have been copied, too.
TEST_F(DeviceTransferTest, WhatTheConversionLostArrivesWithTheFirstRows) {
  const at::Tensor value = (at::ones({4, kWidth}) * 1e6).to(c10::Device(FakeDevice::Name(1)));
  const auto index = transfer_->MakeIndex({0, 2}).value();
  const auto rows = transfer_->Stage(value, *index, 2, {Dtype::kFloat16, kWidth}).value();
  ASSERT_TRUE(transfer_->Copy(*rows, 0, 2, memory_.get()).ok());
  ASSERT_TRUE(transfer_->Record().value()->Wait().ok());
  EXPECT_EQ(rows->TakeLoss().overflows, 2 * kWidth);
  EXPECT_EQ(rows->TakeLoss().overflows, 0);
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

TEST_F(DeviceTransferTest, TheHostSumsUpFewRows) {
  const auto rows = Stage(Value(), {1, 4, 9});
  ASSERT_TRUE(transfer_->Copy(*rows, 0, 3, memory_.get()).ok());
  ASSERT_TRUE(transfer_->Record().value()->Wait().ok());
  EXPECT_TRUE(rows->Sums(0, 3).sums.empty());
}

TEST_F(DeviceTransferTest, AnIndexIsUploadedOnceHoweverManyHookPointsUseIt) {
  const at::Tensor value = Value();
  const int64_t uploads = FakeDevice::counters().uploads;
  const auto index = transfer_->MakeIndex({1, 4, 9, 16}).value();
  for (int64_t rows = 1; rows <= 4; ++rows) ASSERT_TRUE(transfer_->Stage(value, *index, rows, kLayout).ok());
  EXPECT_EQ(FakeDevice::counters().uploads - uploads, 1);
  EXPECT_EQ(FakeDevice::counters().pageable_copies, 0);
}

// The copier's copies for a capture must not wait for passes that the executor queued meanwhile.
TEST_F(DeviceTransferTest, CopiesOfTwoTransfersDoNotWaitForEachOther) {
  const auto copier = MakeTransfer(FakeDevice::Name(1)).value();
  const auto rows = Stage(Value(), {1, 4, 9});
  ASSERT_TRUE(transfer_->Copy(*rows, 0, 1, memory_.get()).ok());
  ASSERT_TRUE(copier->Copy(*rows, 1, 1, memory_.get() + 4096).ok());
  ASSERT_TRUE(copier->Record().value()->Wait().ok());
  EXPECT_EQ(reinterpret_cast<float*>(memory_.get() + 4096)[0], 400);
  EXPECT_TRUE(std::isnan(slab_[0])) << "still queued";
  ASSERT_TRUE(transfer_->Record().value()->Wait().ok());
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

TEST_F(DeviceTransferTest, ABoundThreadNeverTouchesAnotherDevice) {
  const at::Tensor value = Value();
  FakeDevice::Reset();
  const auto rows = Stage(value, {1, 4, 9});
  ASSERT_TRUE(transfer_->Copy(*rows, 0, 3, memory_.get()).ok());
  ASSERT_TRUE(transfer_->Record().value()->Wait().ok());
  EXPECT_EQ(FakeDevice::Switches(0), 0);
}

TEST_F(DeviceTransferTest, MemoryThatCannotBePinnedNamesTheFlagAndWhatPinningTakes) {
  FakeDevice::FailWith("CUDA error: out of memory");
  const auto refused = AllocateHostMemory(600 << 20, FakeDevice::Name(1));
  FakeDevice::FailWith("");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--slab-count"));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("1073741824 bytes"));
}

TEST_F(DeviceTransferTest, CheckTellsWhetherTheDeviceStillComputes) {
  EXPECT_TRUE(transfer_->Check().ok());
  FakeDevice::FailWith("CUDA error: an illegal memory access was encountered");
  EXPECT_EQ(transfer_->Check().code(), absl::StatusCode::kInternal);
  FakeDevice::FailWith("");
}

// cuBLAS has no memory for its workspace: smaller batches may do.
TEST_F(DeviceTransferTest, AnAllocationThatFailsWithinCublasIsOutOfMemory) {
  FakeDevice::FailWith("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`");
  EXPECT_EQ(transfer_->Check().code(), absl::StatusCode::kResourceExhausted);
  FakeDevice::FailWith("");
}

#if HOOKLINE_TORCH_AT_LEAST(2, 5)
TEST(RuntimeTest, AttentionWithAPlanForEveryShapeIsTurnedOff) {
  ConfigureRuntime(/*threads=*/1);
  EXPECT_FALSE(at::globalContext().userEnabledCuDNNSDP());
}
#endif

TEST(RuntimeTest, AnotherLibTorchThanTheServerWasBuiltWithIsRefusedByBothVersions) {
  EXPECT_TRUE(CheckRuntime().ok()) << CheckRuntime();
  EXPECT_TRUE(CheckRuntimeVersions("2.11.0", "2.11.0").ok());
  EXPECT_TRUE(CheckRuntimeVersions("2.11.0", "").ok());
  const absl::Status refused = CheckRuntimeVersions("2.11.0", "2.9.1");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2.11.0"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2.9.1"));
}

}  // namespace
}  // namespace hookline
