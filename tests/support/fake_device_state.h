// Shared by the fake accelerator's parts: fake_device.cc keeps memory, streams and the check, fake_guard.cc shows them
// to LibTorch as a device, and fake_operators.cc brings LibTorch's operators to them.
#ifndef HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_STATE_H_
#define HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_STATE_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/fake_device.h"

namespace hookline::fake_device {

constexpr at::DeviceType kType = at::DeviceType::PrivateUse1;
constexpr int kStreams = 16;  // on each device; 0 is the default stream

// The amount of each stream's work that is known to have ended.
using Clock = std::map<int, int64_t>;

struct Block {
  size_t bytes = 0;
  int device = 0;
  int stream = 0;  // that allocated it, and can reuse it as soon as it is freed
  int writer = -1;
  int64_t write = 0;
  Clock uses;  // reads and writes
};

struct LateCopy {
  int64_t count = 0;  // the place in the stream's work
  uintptr_t block = 0;
  const uint8_t* from = nullptr;
  uint8_t* to = nullptr;
  size_t bytes = 0;
  std::string expected;  // uploads: the source's contents, which must not change
  bool is_upload = false;
};

struct StreamState {
  int64_t count = 0;
  Clock seen;
  std::deque<LateCopy> late;
};

struct FakeEvent {
  Clock clock;
  bool was_queried = false;
};

struct State {
  absl::Mutex mutex;
  std::map<uintptr_t, Block> blocks ABSL_GUARDED_BY(mutex);
  std::map<uintptr_t, size_t> pinned ABSL_GUARDED_BY(mutex);
  std::map<int, StreamState> streams ABSL_GUARDED_BY(mutex);
  Clock host ABSL_GUARDED_BY(mutex);
  FakeDevice::Counters counters ABSL_GUARDED_BY(mutex);
  std::map<std::string, int64_t> by_operator ABSL_GUARDED_BY(mutex);
  std::vector<std::string> races ABSL_GUARDED_BY(mutex);
  int64_t switches[FakeDevice::kDevices] ABSL_GUARDED_BY(mutex) = {};
  int64_t allocated[FakeDevice::kDevices] ABSL_GUARDED_BY(mutex) = {};
  int64_t peak[FakeDevice::kDevices] ABSL_GUARDED_BY(mutex) = {};
  std::map<int, int64_t> limits ABSL_GUARDED_BY(mutex);
  std::string failure ABSL_GUARDED_BY(mutex);
  std::map<int, std::string> device_failures ABSL_GUARDED_BY(mutex);
  bool ignores_stream_waits ABSL_GUARDED_BY(mutex) = false;
  bool ignores_host_waits ABSL_GUARDED_BY(mutex) = false;
  int next_stream[FakeDevice::kDevices] ABSL_GUARDED_BY(mutex) = {};
};

State& state();

// These belong to the calling thread; LibTorch changes them through the guard.
extern thread_local int current_device;
extern thread_local int current_stream[FakeDevice::kDevices];

// Returns the stream's number among those of all devices. Given a device, takes the device's current stream.
int StreamOf(int device);
int StreamOf(const c10::Stream& stream);

// Throws if FakeDevice::FailWith asks for it, or FailDevice for the thread's current device.
void MaybeFail() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex);
// Returns the stream's work up to now, and the work of others that the stream knows of.
Clock ClockOf(int stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex);
void Merge(const Clock& from, Clock* into);
// Tells the host that everything in `clock` has ended.
void Reach(const Clock& clock) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex);

c10::Allocator* DeviceAllocator();
c10::Allocator* PinnedAllocator();
bool IsPinned(const void* data);

// Returns the address at which the CPU finds the bytes of device memory.
void* HostAddress(const void* device_address);

// Counts the launch of `name` on the current stream of the current device and checks it against what other streams do.
// Tensors that are not on the device do not count.
void Launch(const std::string& name, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes);

// Copies between devices, on the source's current stream. That stream and the destination's wait for each other.
void CopyAcross(const at::Tensor& source, const at::Tensor& destination);

// Copies between contiguous tensors of one dtype, of which one lies on the host. The host does not wait.
void CopyLater(const at::Tensor& source, const at::Tensor& destination);
// Counts a copy, or the read of a value, for which the host waits; then waits for the current stream.
void CountBlocking(bool is_upload);

}  // namespace hookline::fake_device

#endif  // HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_STATE_H_
