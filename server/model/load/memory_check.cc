#include "server/model/load/memory_check.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/model/torch_compat.h"

namespace hookline {
namespace {

// Returns the number in the line of `file` that begins with the word `key`.
std::optional<int64_t> NumberAfter(const std::string& file, absl::string_view key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t number = 0;
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &number)) return number;
  }
  return std::nullopt;
}

// Returns the number that is the whole content of `file`; nullopt for "max" too.
std::optional<int64_t> OnlyNumber(const std::string& file) {
  std::ifstream lines(file);
  std::string line;
  int64_t number = 0;
  if (!std::getline(lines, line) || !absl::SimpleAtoi(line, &number)) return std::nullopt;
  return number;
}

// Returns the path of this process's cgroup in the unified hierarchy, "" for the root.
std::string CgroupPath(absl::string_view root) {
  std::ifstream lines(absl::StrCat(root, "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    absl::string_view path = line;
    if (absl::ConsumePrefix(&path, "0::/") && !path.empty()) return absl::StrCat("/", path);
  }
  return "";
}

}  // namespace

std::string MemoryText(int64_t bytes) { return absl::StrFormat("%.1f GB (%d bytes)", bytes / 1e9, bytes); }

absl::Status CheckMemory(absl::Span<const MemoryNeed> needs,
                         absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available) {
  std::map<std::string, std::vector<const MemoryNeed*>> by_device;
  for (const MemoryNeed& need : needs) by_device[need.device].push_back(&need);
  for (const auto& [device, models] : by_device) {
    const std::optional<AvailableMemory> memory = available(device);
    if (!memory) continue;
    int64_t needed = 0;
    for (const MemoryNeed* need : models) needed += need->bytes;
    if (needed <= memory->bytes) continue;
    std::string parts;
    if (models.size() > 1) {
      parts = absl::StrJoin(models, ", ", [](std::string* out, const MemoryNeed* need) {
        absl::StrAppend(out, "'", need->model, "' ", MemoryText(need->bytes));
      });
      parts = absl::StrCat(": ", parts);
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "the weights of ", models.size() == 1 ? absl::StrCat("model '", models[0]->model, "'") : "all models", " need ",
        MemoryText(needed), " on ", device, ", where ", MemoryText(memory->bytes), " are available (", memory->source,
        ")", parts, "; load fewer or smaller models, or choose a --dtype or --device that fits"));
  }
  return absl::OkStatus();
}

std::optional<AvailableMemory> HostMemory(absl::string_view root) {
  const std::optional<int64_t> kilobytes = NumberAfter(absl::StrCat(root, "/proc/meminfo"), "MemAvailable:");
  if (!kilobytes) return std::nullopt;
  AvailableMemory memory{*kilobytes * 1024, "MemAvailable of /proc/meminfo"};
  // A limit also applies to all cgroups below it.
  std::string path = CgroupPath(root);
  for (bool at_top = false; !at_top;) {
    at_top = path.empty();
    const std::string folder = absl::StrCat("/sys/fs/cgroup", path);
    if (!at_top) path.resize(path.rfind('/'));
    const std::optional<int64_t> limit = OnlyNumber(absl::StrCat(root, folder, "/memory.max"));
    const std::optional<int64_t> used = OnlyNumber(absl::StrCat(root, folder, "/memory.current"));
    if (!limit || !used) continue;
    const int64_t droppable = NumberAfter(absl::StrCat(root, folder, "/memory.stat"), "inactive_file").value_or(0) +
                              NumberAfter(absl::StrCat(root, folder, "/memory.stat"), "active_file").value_or(0);
    const int64_t left = std::max<int64_t>(0, *limit - std::max<int64_t>(0, *used - droppable));
    if (left < memory.bytes) memory = {left, absl::StrCat("memory.max of ", folder)};
  }
  return memory;
}

std::optional<AvailableMemory> MemoryOf(const std::string& device) {
  try {
    const c10::Device where(device);
    if (where.is_cpu()) return HostMemory();
    if (const std::optional<int64_t> bytes = FreeBytesOn(where); bytes.has_value()) {
      return AvailableMemory{*bytes, "reported by the driver"};
    }
  } catch (const std::exception&) {
    return std::nullopt;  // loading the model reports what is wrong with the device
  }
  return std::nullopt;
}

}  // namespace hookline
