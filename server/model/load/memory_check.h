// Checks whether models fit into memory, before they are loaded.
//
//   RETURN_IF_ERROR(CheckMemory({{"gpt2", "cuda:0", 248894976}}, &MemoryOf));
#ifndef HOOKLINE_SERVER_MODEL_LOAD_MEMORY_CHECK_H_
#define HOOKLINE_SERVER_MODEL_LOAD_MEMORY_CHECK_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline {

// The memory that a model's weights take on its device, in the dtype that they have there.
struct MemoryNeed {
  std::string model;   // its name
  std::string device;  // as LibTorch names it: "cpu", "cuda:0"
  int64_t bytes = 0;
};

struct AvailableMemory {
  int64_t bytes = 0;
  std::string source;  // the source of the number, e.g. "MemAvailable of /proc/meminfo"
};

// Returns RESOURCE_EXHAUSTED, with both numbers and each model's, if the models of one device need more than it has. A
// device for which `available` returns nullopt passes.
absl::Status CheckMemory(absl::Span<const MemoryNeed> needs,
                         absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available);

// Returns the bytes that the host can give without swapping: MemAvailable, or less if a cgroup (version 2) that
// contains this process has a limit. A limit leaves its own bytes minus those in use, where droppable files count as
// free. Returns nullopt if /proc has no number. `root` is put before the paths, for tests.
std::optional<AvailableMemory> HostMemory(absl::string_view root = "");

// Returns the bytes that a model on `device` (LibTorch's name) can get: HostMemory for "cpu", else the driver's
// number of free bytes. Returns nullopt if LibTorch gives it only through CUDA's headers (before 2.11), or there is
// no such device.
std::optional<AvailableMemory> MemoryOf(const std::string& device);

// Returns text such as "1.5 GB (1500000000 bytes)".
std::string MemoryText(int64_t bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_MEMORY_CHECK_H_
