// Tests the fake accelerator's promises to the tests that run on it, above all that its check sees what is wrong.
#include "tests/support/fake_device.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cmath>

#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FakeDeviceTest : public ::testing::Test {
 protected:
  FakeDeviceTest() { FakeDevice::Reset(); }

  const c10::Device device_{FakeDevice::Name(0)};
  const c10::impl::VirtualGuardImpl guard_{device_.type()};
  c10::InferenceMode inference_;
};

TEST_F(FakeDeviceTest, ComputesWhatTheCpuComputes) {
  const at::Tensor a = at::rand({5, 7}), b = at::rand({7, 3});
  const at::Tensor on_device = at::mm(a.to(device_), b.to(device_)).relu().mul_(2);
  EXPECT_EQ(on_device.device(), device_);
  EXPECT_TRUE(at::equal(on_device.cpu(), at::mm(a, b).relu().mul_(2)));
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
  EXPECT_EQ(FakeDevice::LaunchesByOperator()["aten::mm"], 1);
}

TEST_F(FakeDeviceTest, MemoryBeginsAsNotANumberAndCannotBeReadByTheHost) {
  const at::Tensor fresh = at::empty({4}, at::TensorOptions(device_));
  EXPECT_TRUE(fresh.isnan().all().cpu().item<bool>());
  EXPECT_DEATH(
      {
        volatile float x = *fresh.data_ptr<float>();
        (void)x;
      },
      "");
}

TEST_F(FakeDeviceTest, ACopyToTheHostArrivesWhenItIsWaitedFor) {
  const at::Tensor source = at::ones({8}, at::TensorOptions(device_));
  const at::Tensor pinned = at::empty({8}, at::TensorOptions().pinned_memory(true));
  pinned.copy_(source, /*non_blocking=*/true);
  EXPECT_TRUE(std::isnan(pinned[0].item<float>()));
  c10::Event event(device_.type());
  event.record(guard_.getStream(device_));
  while (!event.query()) {
  }
  EXPECT_TRUE(at::equal(pinned, at::ones({8})));
  EXPECT_EQ(FakeDevice::counters().pageable_copies, 0);
  EXPECT_EQ(FakeDevice::counters().blocking_copies, 0);
}

TEST_F(FakeDeviceTest, ReportsAReadThatDoesNotWaitForItsWriter) {
  const at::Tensor written = at::ones({8}, at::TensorOptions(device_));
  const c10::Stream other = guard_.getStreamFromGlobalPool(device_);
  {
    c10::StreamGuard on_other(other);
    (void)(written * 2);
  }
  ASSERT_EQ(FakeDevice::Races().size(), 1u);
  EXPECT_THAT(FakeDevice::Races()[0], HasSubstr("may not have written yet"));
}

TEST_F(FakeDeviceTest, AnEventOrdersStreams) {
  const at::Tensor written = at::ones({8}, at::TensorOptions(device_));
  c10::Event event(device_.type());
  event.record(guard_.getStream(device_));
  const c10::Stream other = guard_.getStreamFromGlobalPool(device_);
  event.block(other);
  {
    c10::StreamGuard on_other(other);
    (void)(written * 2);
  }
  other.synchronize();
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

TEST_F(FakeDeviceTest, ReportsTheFreeingOfWhatIsStillCopied) {
  const at::Tensor pinned = at::empty({8}, at::TensorOptions().pinned_memory(true));
  {
    const at::Tensor source = at::ones({8}, at::TensorOptions(device_));
    c10::Event event(device_.type());
    event.record(guard_.getStream(device_));
    const c10::Stream other = guard_.getStreamFromGlobalPool(device_);
    event.block(other);
    c10::StreamGuard on_other(other);
    pinned.copy_(source, /*non_blocking=*/true);
  }
  ASSERT_EQ(FakeDevice::Races().size(), 1u);
  EXPECT_THAT(FakeDevice::Races()[0], HasSubstr("is freed while"));
}

TEST_F(FakeDeviceTest, ReportsPinnedMemoryThatChangesUnderAnUpload) {
  const at::Tensor pinned = at::empty({8}, at::TensorOptions().pinned_memory(true)).fill_(1);
  const at::Tensor uploaded = pinned.to(device_, /*non_blocking=*/true);
  pinned.fill_(2);
  guard_.getStream(device_).synchronize();
  ASSERT_EQ(FakeDevice::Races().size(), 1u);
  EXPECT_THAT(FakeDevice::Races()[0], HasSubstr("pinned memory was written"));
}

TEST_F(FakeDeviceTest, CountsCopiesThatBlockAndThoseFromPageableMemory) {
  const at::Tensor host = at::ones({8});
  const at::Tensor blocking = host.to(device_);
  const at::Tensor pageable = host.to(device_, /*non_blocking=*/true);
  EXPECT_EQ(blocking.sum().item<float>() + pageable.sum().item<float>(), 16);
  EXPECT_EQ(FakeDevice::counters().uploads, 2);
  EXPECT_EQ(FakeDevice::counters().pageable_copies, 1);
  EXPECT_EQ(FakeDevice::counters().blocking_copies, 3);
}

TEST_F(FakeDeviceTest, HasOnlySoMuchMemory) {
  FakeDevice::LimitMemory(0, FakeDevice::AllocatedBytes(0) + 100);
  EXPECT_THROW(at::empty({26}, at::TensorOptions(device_)), c10::OutOfMemoryError);
  const at::Tensor fits = at::empty({25}, at::TensorOptions(device_));
  EXPECT_EQ(FakeDevice::AllocatedBytes(1), 0);
}

TEST_F(FakeDeviceTest, CountsHowOftenADeviceBecomesCurrent) {
  const c10::Device second(FakeDevice::Name(1));
  const c10::Stream stream = c10::impl::VirtualGuardImpl(second.type()).getDefaultStream(second);
  c10::Event event(second.type());
  event.record(stream);
  EXPECT_GT(FakeDevice::Switches(0), 0) << "recording sets the device back, as CUDA's does";
  FakeDevice::Reset();
  const c10::DeviceGuard guard(second);
  event.record(stream);
  EXPECT_EQ(FakeDevice::Switches(0), 0);
}

}  // namespace
}  // namespace hookline
