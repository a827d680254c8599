#include "server/model/load/preflight.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/name.h"

namespace hookline {
namespace {

// Each has its own executor thread.
constexpr size_t kMaxModels = 64;

}  // namespace

absl::Status CheckModels(absl::Span<const ModelOptions> models,
                         absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available) {
  if (models.size() > kMaxModels) {
    return absl::InvalidArgumentError(
        absl::StrCat(models.size(), " models; --model can be given at most ", kMaxModels, " times"));
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
      return absl::InvalidArgumentError(absl::StrCat("--model ", one.path, ": two models are named '", name,
                                                     "'; give them different names as NAME=PATH"));
    }
    // A model that cannot be counted cannot be loaded either, and loading it gives a better error.
    if (const auto counted = CountWeights(one); counted.ok())
      needs.insert(needs.end(), counted->begin(), counted->end());
  }
  return CheckMemory(needs, available);
}

}  // namespace hookline
