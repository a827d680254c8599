#include "server/model/load/device_spec.h"

#include <cstddef>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/escape.h"

namespace hookline {
namespace {

// Each device has its own threads. Larger machines have fewer accelerators.
constexpr size_t kMaxDevices = 64;

}  // namespace

absl::StatusOr<std::vector<std::vector<std::string>>> ParseDevices(absl::string_view text) {
  const auto refused = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "device ", Quoted(std::string(text)), ": ", why,
        "; give cpu, cuda:0, one replica on each of cuda:0,cuda:1, the stages of one on cuda:0+cuda:1, or both"));
  };
  std::vector<std::vector<std::string>> replicas;
  std::set<std::string> seen;
  size_t count = 0, cpus = 0;
  for (const absl::string_view replica : absl::StrSplit(text, ',')) {
    std::vector<std::string>& stages = replicas.emplace_back();
    for (const absl::string_view stage : absl::StrSplit(replica, '+')) {
      const std::string& device = stages.emplace_back(stage);
      ++count;
      if (device.empty()) return refused("a device is missing");
      if (device == "cpu") {
        ++cpus;
      } else if (!seen.insert(device).second) {
        return refused(absl::StrCat(device, " is named twice"));
      }
    }
  }
  if (count > kMaxDevices) return refused(absl::StrCat(count, " devices are more than ", kMaxDevices));
  if (count > 1 && (seen.count("auto") != 0 || seen.count("cuda") != 0)) {
    return refused("auto and cuda cannot be combined with other devices; name each device with its number");
  }
  if (cpus != 0 && cpus != count) return refused("rows of the CPU differ from those of other devices");
  return replicas;
}

}  // namespace hookline
