// Checks whether several models can be in one server, before the first is loaded.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_CHECK_MODELS_H_
#define HOOKLINE_SERVER_MODEL_LOAD_CHECK_MODELS_H_

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/model/load.h"
#include "server/model/load/memory.h"

namespace hookline {

// Names must be unique (an empty one is the last part of the path), and the models of one device must fit there
// together, counted by their files: halved where they become 2-byte types, so that what is refused cannot fit. Loading
// each checks it again, then exactly. Errors: INVALID_ARGUMENT (none, more than 64, a name twice or one of other
// characters than letters, digits, `.`, `_` and `-`), RESOURCE_EXHAUSTED (as CheckMemory).
absl::Status CheckModels(
    absl::Span<const ModelOptions> models,
    absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available = MemoryOf);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_CHECK_MODELS_H_
