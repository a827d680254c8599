// Checks whether several models can be in one server, before the first is loaded.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_PREFLIGHT_H_
#define HOOKLINE_SERVER_MODEL_LOAD_PREFLIGHT_H_

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/model/load.h"
#include "server/model/load/memory_check.h"

namespace hookline {

// Names must be unique (an empty one is the last part of the path), and the models of one device must fit there
// together, as CountWeights counts them. A model that cannot be counted counts nothing: loading it says why. Errors:
// INVALID_ARGUMENT (none, more than 64, a name twice or one of other characters than letters, digits, `.`, `_` and
// `-`), RESOURCE_EXHAUSTED (as CheckMemory).
absl::Status CheckModels(
    absl::Span<const ModelOptions> models,
    absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available = MemoryOf);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_PREFLIGHT_H_
