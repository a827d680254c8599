#include "server/model/load/check_models.h"

#include <ATen/Context.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/base/escape.h"
#include "server/base/name.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;

// Each has an executor thread of its own.
constexpr size_t kMaxModels = 64;

// The device as LibTorch names it; "" for what loading will refuse.
std::string DeviceOf(const ModelOptions& options) {
  if (options.device == "auto") return at::hasCUDA() ? "cuda:0" : "cpu";
  return options.device == "cuda" ? "cuda:0" : options.device;
}

// Bytes of the files that hold the weights; 0 where there are none, which loading says better.
int64_t WeightFileBytes(const ModelOptions& options) {
  std::error_code error;
  if (!fs::is_directory(options.path, error)) {
    const uintmax_t bytes = fs::file_size(options.path, error);
    return error ? 0 : static_cast<int64_t>(bytes);
  }
  int64_t safetensors = 0;
  int64_t pickled = 0;  // read where there are no safetensors
  int64_t checkpoint = 0;
  std::string newest;  // of nanochat's, whose names sort by step
  const std::string wanted = options.step < 0 ? "" : absl::StrFormat("model_%06d.pt", options.step);
  for (fs::directory_iterator it(options.path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code unreadable;
    const uintmax_t bytes = it->file_size(unreadable);
    if (unreadable) continue;
    if (absl::EndsWith(name, ".safetensors")) safetensors += static_cast<int64_t>(bytes);
    if (absl::StartsWith(name, "pytorch_model") && absl::EndsWith(name, ".bin")) pickled += static_cast<int64_t>(bytes);
    if (absl::StartsWith(name, "model_") && absl::EndsWith(name, ".pt") &&
        (wanted.empty() ? name > newest : name == wanted)) {
      newest = name;
      checkpoint = static_cast<int64_t>(bytes);
    }
  }
  return checkpoint > 0 ? checkpoint : safetensors > 0 ? safetensors : pickled;
}

// No more than the weights can take in the end.
MemoryNeed LeastNeed(const ModelOptions& options) {
  MemoryNeed need{ModelName(options), DeviceOf(options), WeightFileBytes(options)};
  const bool float32 = options.dtype == "float32" || (options.dtype == "auto" && need.device == "cpu");
  if (!float32) need.bytes /= 2;
  return need;
}

}  // namespace

absl::Status CheckModels(absl::Span<const ModelOptions> models,
                         absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available) {
  if (models.size() > kMaxModels) {
    return absl::InvalidArgumentError(
        absl::StrCat(models.size(), " models; --model may be given ", kMaxModels, " times"));
  }
  std::set<std::string> names;
  std::vector<MemoryNeed> needs;
  for (const ModelOptions& one : models) {
    const std::string name = ModelName(one);
    if (!IsName(name)) {
      return absl::InvalidArgumentError(absl::StrCat("--model ", one.path, ": ", Quoted(name),
                                                     " is not a name; give one of 1 to ", kMaxNameBytes,
                                                     " letters, digits, '.', '_' and '-' as NAME=PATH"));
    }
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model ", one.path, ": two models are named '", name, "'; name them apart as NAME=PATH"));
    }
    needs.push_back(LeastNeed(one));
  }
  return CheckMemory(needs, available);
}

}  // namespace hookline
