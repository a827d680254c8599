// Checks whether several models fit in one server, before the first is loaded.
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

// Names must be unique (an empty one stands for the last part of the path), and the models of one device must fit there
// together, by CountWeights. A model whose weights cannot be counted is left out, since loading it reports the reason.
// Errors: INVALID_ARGUMENT (no model, more than 64, a name twice or one with characters other than letters, digits,
// `.`, `_` and `-`), RESOURCE_EXHAUSTED (as CheckMemory).
absl::Status CheckModels(
    absl::Span<const ModelOptions> models,
    absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available = MemoryOf);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_PREFLIGHT_H_
