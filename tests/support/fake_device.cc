#include "tests/support/fake_device.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/torch_compat.h"
#include "tests/support/fake_device_state.h"

namespace hookline {
namespace fake_device {

State& state() {
  static State* const state = new State;  // tensors may outlive every other static
  return *state;
}

thread_local int current_device = 0;
thread_local int current_stream[FakeDevice::kDevices] = {};

int StreamOf(int device) { return device * kStreams + current_stream[device]; }
int StreamOf(const c10::Stream& stream) { return stream.device_index() * kStreams + static_cast<int>(stream.id()); }

void MaybeFail() {
  if (!state().failure.empty()) TORCH_CHECK(false, state().failure);
  const auto found = state().device_failures.find(current_device);
  if (found != state().device_failures.end()) TORCH_CHECK(false, found->second);
}

void Merge(const Clock& from, Clock* into) {
  for (const auto& [stream, count] : from) (*into)[stream] = std::max((*into)[stream], count);
}

namespace {

// Bit 62 is set without bit 63, which no address of a process on x86-64 or arm64 has.
constexpr uintptr_t kDeviceBit = uintptr_t{1} << 62;
constexpr int kPoison = 0xff;  // NaN in every floating-point type

bool Knows(int stream, int other, int64_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex) {
  if (stream == other) return true;
  const auto known = [&](const Clock& clock) {
    const auto found = clock.find(other);
    return found != clock.end() && found->second >= count;
  };
  return known(state().streams[stream].seen) || known(state().host);
}

void Race(const std::string& what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex) {
  constexpr size_t kMost = 1000;  // the first ones show what is wrong
  if (state().races.size() < kMost) state().races.push_back(what);
}

void Finish(const LateCopy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex) {
  if (!copy.is_upload) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else if (std::memcmp(copy.expected.data(), copy.from, copy.bytes) != 0) {
    Race("pinned memory was written while it was copied to the device");
  }
}

}  // namespace

void Reach(const Clock& clock) {
  if (state().ignores_host_waits) return;
  Merge(clock, &state().host);
  for (const auto& [stream, count] : clock) {
    std::deque<LateCopy>& late = state().streams[stream].late;
    while (!late.empty() && late.front().count <= count) {
      Finish(late.front());
      late.pop_front();
    }
  }
}

Clock ClockOf(int stream) {
  Clock clock = state().streams[stream].seen;
  clock[stream] = state().streams[stream].count;
  return clock;
}

namespace {

Block* BlockOf(const at::Tensor& tensor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex) {
  if (!tensor.defined() || tensor.device().type() != kType || tensor.numel() == 0) return nullptr;
  const auto address = reinterpret_cast<uintptr_t>(tensor.storage().data());
  const auto found = state().blocks.find(address);
  return found == state().blocks.end() ? nullptr : &found->second;
}

void Read(const std::string& name, int stream, const at::Tensor& tensor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex) {
  Block* const block = BlockOf(tensor);
  if (block == nullptr) return;
  if (block->writer >= 0 && !Knows(stream, block->writer, block->write)) {
    Race(absl::StrCat(name, " on stream ", stream, " reads what stream ", block->writer, " may not have written yet"));
  }
  block->uses[stream] = state().streams[stream].count;
}

void Write(const std::string& name, int stream, const at::Tensor& tensor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state().mutex) {
  Block* const block = BlockOf(tensor);
  if (block == nullptr) return;
  for (const auto& [user, count] : block->uses) {
    if (Knows(stream, user, count)) continue;
    Race(absl::StrCat(name, " on stream ", stream, " overwrites what stream ", user, " may still use"));
  }
  block->writer = stream;
  block->write = state().streams[stream].count;
  block->uses[stream] = block->write;
}

void FreeDevice(void* address) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  absl::MutexLock lock(&state().mutex);
  const auto found = state().blocks.find(begin);
  const Block& block = found->second;
  // Nothing runs on a device that has failed, so that no use is left to wait for.
  const bool has_failed = !state().failure.empty() || state().device_failures.count(block.device) > 0;
  for (const auto& [user, count] : block.uses) {
    if (has_failed) break;
    if (user == block.stream || Knows(block.stream, user, count)) continue;
    Race(absl::StrCat("a block of stream ", block.stream, " is freed while stream ", user, " may still use it"));
  }
  for (auto& [stream, its] : state().streams) {
    for (auto copy = its.late.begin(); copy != its.late.end();) {
      copy = copy->block == begin && !copy->is_upload ? its.late.erase(copy) : copy + 1;
    }
  }
  std::memset(HostAddress(address), kPoison, block.bytes);
  std::free(HostAddress(address));
  state().allocated[block.device] -= static_cast<int64_t>(block.bytes);
  state().blocks.erase(found);
}

void FreePinned(void* address) {
  absl::MutexLock lock(&state().mutex);
  const auto begin = static_cast<const uint8_t*>(address);
  const size_t bytes = state().pinned.at(reinterpret_cast<uintptr_t>(address));
  for (auto& [stream, its] : state().streams) {
    for (auto copy = its.late.begin(); copy != its.late.end();) {
      const uint8_t* const host = copy->is_upload ? copy->from : copy->to;
      const bool inside = host >= begin && host < begin + bytes;
      // LibTorch keeps freed pinned memory until the copies from it have ended.
      if (inside && copy->is_upload) Finish(*copy);
      if (inside && !copy->is_upload) Race("pinned memory is freed while rows may still be copied to it");
      copy = inside ? its.late.erase(copy) : copy + 1;
    }
  }
  state().pinned.erase(reinterpret_cast<uintptr_t>(address));
  state().counters.pinned_bytes -= static_cast<int64_t>(bytes);
  std::free(address);
}

void* Allocate(size_t bytes) {
  constexpr size_t kAlignment = 64;
  void* const memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  TORCH_CHECK(memory != nullptr, "no memory for the fake device");
  std::memset(memory, kPoison, bytes);
  return memory;
}

#if HOOKLINE_TORCH_AT_LEAST(2, 4)
#define HOOKLINE_ALLOCATE_CONST
#else
#define HOOKLINE_ALLOCATE_CONST const
#endif

class DeviceMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) HOOKLINE_ALLOCATE_CONST override {
    const int device = current_device;
    const c10::Device where(kType, static_cast<c10::DeviceIndex>(device));
    if (bytes == 0) return {nullptr, where};
    absl::MutexLock lock(&state().mutex);
    const int64_t wanted = state().allocated[device] + static_cast<int64_t>(bytes);
    if (const auto limit = state().limits.find(device); limit != state().limits.end() && wanted > limit->second) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, "fake device ", device, " out of memory: ", wanted, " of ",
                       limit->second, " bytes");
    }
    state().allocated[device] = wanted;
    state().peak[device] = std::max(state().peak[device], wanted);
    const auto begin = reinterpret_cast<uintptr_t>(Allocate(bytes)) | kDeviceBit;
    Block& block = state().blocks[begin];
    block.bytes = bytes;
    block.device = device;
    block.stream = StreamOf(device);
    void* const address = reinterpret_cast<void*>(begin);
    return {address, address, &FreeDevice, where};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &FreeDevice; }
#if HOOKLINE_TORCH_AT_LEAST(2, 2)
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(HostAddress(to), HostAddress(from), bytes);
  }
#endif
};

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) HOOKLINE_ALLOCATE_CONST override {
    if (bytes == 0) return {nullptr, at::kCPU};
    absl::MutexLock lock(&state().mutex);
    MaybeFail();
    void* const memory = Allocate(bytes);
    state().pinned[reinterpret_cast<uintptr_t>(memory)] = bytes;
    state().counters.pinned_bytes += static_cast<int64_t>(bytes);
    return {memory, memory, &FreePinned, at::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &FreePinned; }
#if HOOKLINE_TORCH_AT_LEAST(2, 2)
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
#endif
};

}  // namespace

c10::Allocator* DeviceAllocator() {
  static auto* const allocator = new DeviceMemory;
  return allocator;
}

c10::Allocator* PinnedAllocator() {
  static auto* const allocator = new PinnedMemory;
  return allocator;
}

bool IsPinned(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  absl::MutexLock lock(&state().mutex);
  auto after = state().pinned.upper_bound(address);
  return after != state().pinned.begin() && address < std::prev(after)->first + std::prev(after)->second;
}

void* HostAddress(const void* device_address) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(device_address) & ~kDeviceBit);
}

void Launch(const std::string& name, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes) {
  absl::MutexLock lock(&state().mutex);
  MaybeFail();
  ++state().counters.launches;
  ++state().by_operator[name];
  const int stream = StreamOf(current_device);
  ++state().streams[stream].count;
  for (const at::Tensor& tensor : reads) Read(name, stream, tensor);
  for (const at::Tensor& tensor : writes) Write(name, stream, tensor);
}

void CopyAcross(const at::Tensor& source, const at::Tensor& destination) {
  absl::MutexLock lock(&state().mutex);
  MaybeFail();
  ++state().counters.launches;
  ++state().by_operator["copy_"];
  const int from = StreamOf(source.device().index()), to = StreamOf(destination.device().index());
  Merge(ClockOf(to), &state().streams[from].seen);
  ++state().streams[from].count;
  Read("copy_", from, source);
  Write("copy_", from, destination);
  Merge(ClockOf(from), &state().streams[to].seen);
}

void CopyLater(const at::Tensor& source, const at::Tensor& destination) {
  const bool is_upload = source.is_cpu();
  const bool is_pinned = IsPinned((is_upload ? source : destination).data_ptr());
  absl::MutexLock lock(&state().mutex);
  MaybeFail();
  if (!is_pinned) ++state().counters.pageable_copies;
  if (is_upload) ++state().counters.uploads;
  const int stream = StreamOf(current_device);
  LateCopy copy;
  copy.count = ++state().streams[stream].count;
  copy.bytes = source.nbytes();
  copy.is_upload = is_upload;
  copy.from = static_cast<const uint8_t*>(is_upload ? source.data_ptr() : HostAddress(source.data_ptr()));
  copy.to = static_cast<uint8_t*>(is_upload ? HostAddress(destination.data_ptr()) : destination.data_ptr());
  copy.block = reinterpret_cast<uintptr_t>((is_upload ? destination : source).storage().data());
  if (is_upload) {
    Write("upload", stream, destination);
    std::memcpy(copy.to, copy.from, copy.bytes);
    if (!is_pinned) return;  // CUDA reads the source before the call returns
    copy.expected.assign(reinterpret_cast<const char*>(copy.from), copy.bytes);
  } else {
    Read("download", stream, source);
    std::memset(copy.to, kPoison, copy.bytes);
  }
  state().streams[stream].late.push_back(std::move(copy));
}

void CountBlocking(bool is_upload) {
  absl::MutexLock lock(&state().mutex);
  MaybeFail();
  ++state().counters.blocking_copies;
  if (is_upload) ++state().counters.uploads;
  Reach(ClockOf(StreamOf(current_device)));
}

}  // namespace fake_device

using fake_device::state;

std::string FakeDevice::Name(int device) {
  return c10::Device(fake_device::kType, static_cast<c10::DeviceIndex>(device)).str();
}

void FakeDevice::Reset() {
  absl::MutexLock lock(&state().mutex);
  state().races.clear();
  const int64_t pinned = state().counters.pinned_bytes;
  state().counters = {};
  state().counters.pinned_bytes = pinned;
  state().by_operator.clear();
  state().limits.clear();
  state().failure.clear();
  state().device_failures.clear();
  state().ignores_stream_waits = state().ignores_host_waits = false;
  for (int device = 0; device < kDevices; ++device) {
    state().switches[device] = 0;
    state().peak[device] = state().allocated[device];
  }
  // Drops work that an earlier test left.
  for (auto& [stream, its] : state().streams) {
    its.late.clear();
    state().host[stream] = its.count;
  }
}

FakeDevice::Counters FakeDevice::counters() {
  absl::MutexLock lock(&state().mutex);
  return state().counters;
}

std::map<std::string, int64_t> FakeDevice::LaunchesByOperator() {
  absl::MutexLock lock(&state().mutex);
  return state().by_operator;
}

std::vector<std::string> FakeDevice::Races() {
  absl::MutexLock lock(&state().mutex);
  return state().races;
}

int64_t FakeDevice::Switches(int device) {
  absl::MutexLock lock(&state().mutex);
  return state().switches[device];
}

int64_t FakeDevice::AllocatedBytes(int device) {
  absl::MutexLock lock(&state().mutex);
  return state().allocated[device];
}

int64_t FakeDevice::PeakBytes(int device) {
  absl::MutexLock lock(&state().mutex);
  return state().peak[device];
}

void FakeDevice::LimitMemory(int device, int64_t bytes) {
  absl::MutexLock lock(&state().mutex);
  state().limits[device] = bytes;
}

void FakeDevice::FailDevice(int device, const std::string& message) {
  absl::MutexLock lock(&state().mutex);
  state().device_failures[device] = message;
}

void FakeDevice::FailWith(const std::string& message) {
  absl::MutexLock lock(&state().mutex);
  state().failure = message;
}

void FakeDevice::IgnoreStreamWaits() {
  absl::MutexLock lock(&state().mutex);
  state().ignores_stream_waits = true;
}

void FakeDevice::IgnoreHostWaits() {
  absl::MutexLock lock(&state().mutex);
  state().ignores_host_waits = true;
}

}  // namespace hookline
