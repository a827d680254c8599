// Shows the fake accelerator to LibTorch: a device with streams and events, and pinned memory.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <utility>

#include "server/model/torch_compat.h"
#include "tests/support/fake_device.h"
#include "tests/support/fake_device_state.h"
#if HOOKLINE_TORCH_AT_LEAST(2, 6)
#include <ATen/detail/PrivateUse1HooksInterface.h>
#else
#include <ATen/detail/CUDAHooksInterface.h>
#endif

namespace hookline::fake_device {
namespace {

// Sets and restores the thread's device where CUDAGuardImpl does.
class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kType, static_cast<c10::DeviceIndex>(current_device)}; }
  void setDevice(c10::Device device) const override {
    if (device.index() < 0 || device.index() == current_device) return;
    current_device = device.index();
    absl::MutexLock lock(&state().mutex);
    ++state().switches[current_device];
  }
  // A guard does this at its end. Like CUDA's, it makes no context if the device has none.
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current_device = device.index();
  }
#if HOOKLINE_TORCH_AT_LEAST(2, 8)
#define HOOKLINE_STREAM_NOEXCEPT
#else
#define HOOKLINE_STREAM_NOEXCEPT noexcept
#endif
  c10::Stream getStream(c10::Device device) const HOOKLINE_STREAM_NOEXCEPT override {
    return Make(device, current_stream[device.index()]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return Make(device, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    absl::MutexLock lock(&state().mutex);
    int& next = state().next_stream[device.index()];
    next = next % (kStreams - 1) + 1;
    return Make(device, next);
  }
  c10::Stream exchangeStream(c10::Stream stream) const HOOKLINE_STREAM_NOEXCEPT override {
    const c10::Stream before = getStream(stream.device());
    current_stream[stream.device_index()] = static_cast<int>(stream.id());
    return before;
  }

  void destroyEvent(void* event, const c10::DeviceIndex device) const noexcept override {
    if (event == nullptr) return;
    const c10::Device before = exchangeDevice({kType, device});
    delete static_cast<FakeEvent*>(event);
    setDevice(before);
  }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    const c10::Device before = exchangeDevice(stream.device());
    if (*event == nullptr) *event = new FakeEvent;
    {
      absl::MutexLock lock(&state().mutex);
      ++state().streams[StreamOf(stream)].count;
      *static_cast<FakeEvent*>(*event) = {ClockOf(StreamOf(stream)), false};
    }
    setDevice(before);
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    const c10::Device before = exchangeDevice(stream.device());
    {
      absl::MutexLock lock(&state().mutex);
      if (!state().ignores_stream_waits) {
        Merge(static_cast<FakeEvent*>(event)->clock, &state().streams[StreamOf(stream)].seen);
      }
    }
    setDevice(before);
  }
  // The first query always finds the event pending, so that callers must be able to wait.
  bool queryEvent(void* event) const override {
    if (event == nullptr) return true;
    absl::MutexLock lock(&state().mutex);
    ++state().counters.queries;
    MaybeFail();
    auto& its = *static_cast<FakeEvent*>(event);
    if (!std::exchange(its.was_queried, true)) return false;
    Reach(its.clock);
    return true;
  }
  bool queryStream(const c10::Stream& stream) const override {
    absl::MutexLock lock(&state().mutex);
    ++state().counters.queries;
    Reach(ClockOf(StreamOf(stream)));
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    absl::MutexLock lock(&state().mutex);
    ++state().counters.host_waits;
    MaybeFail();
    Reach(ClockOf(StreamOf(stream)));
  }
#if HOOKLINE_TORCH_AT_LEAST(2, 3)
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    absl::MutexLock lock(&state().mutex);
    ++state().counters.host_waits;
    MaybeFail();
    Reach(static_cast<FakeEvent*>(event)->clock);
  }
#endif
  c10::DeviceIndex deviceCount() const noexcept override { return FakeDevice::kDevices; }

 private:
  static c10::Stream Make(c10::Device device, int id) { return c10::Stream(c10::Stream::UNSAFE, device, id); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace
}  // namespace hookline::fake_device

// LibTorch asks the accelerator's hooks for pinned memory, and asked CUDA's before those existed.
namespace at {
namespace {

#if HOOKLINE_TORCH_AT_LEAST(2, 6)
struct FakeHooks final : PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return hookline::FakeDevice::kDevices; }
  Allocator* getPinnedMemoryAllocator() const override { return hookline::fake_device::PinnedAllocator(); }
  bool isPinnedPtr(const void* data) const override { return hookline::fake_device::IsPinned(data); }
};

const bool registered = [] {
  c10::register_privateuse1_backend("fake");
  RegisterPrivateUse1HooksInterface(new FakeHooks);
  return true;
}();
#else
struct FakeHooks final : CUDAHooksInterface {
  explicit FakeHooks(CUDAHooksArgs) {}
  Allocator* getPinnedMemoryAllocator() const override { return hookline::fake_device::PinnedAllocator(); }
  bool isPinnedPtr(void* data) const override { return hookline::fake_device::IsPinned(data); }
};

C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, FakeHooks)
#endif

}  // namespace
}  // namespace at
