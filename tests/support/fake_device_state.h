// Shared by the fake accelerator's parts: fake_device.cc keeps memory, streams and the check, fake_operators.cc brings
// LibTorch's operators to them.
#ifndef HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_STATE_H_
#define HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_STATE_H_

#include <ATen/ATen.h>

#include <string>
#include <vector>

namespace hookline::fake_device {

constexpr at::DeviceType kType = at::DeviceType::PrivateUse1;

c10::Allocator* DeviceAllocator();
c10::Allocator* PinnedAllocator();
bool IsPinned(const void* data);

// Returns where the bytes of device memory really lie.
void* HostAddress(const void* device_address);

// Counts the launch of `name` on the current stream of the current device and checks it against what other streams do.
// Of the tensors only those on the device count.
void Launch(const std::string& name, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes);

// A copy between contiguous tensors of one dtype, of which one lies on the host; the host does not wait for it.
void CopyLater(const at::Tensor& source, const at::Tensor& destination);
// Counts a copy, or the reading of a value, for which the host waits, and waits for the current stream.
void CountBlocking(bool is_upload);

}  // namespace hookline::fake_device

#endif  // HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_STATE_H_
