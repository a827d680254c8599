// Several models for one server.
//
//   ASSIGN_OR_RETURN(auto models, LoadModels(flags.models));
#ifndef HOOKLINE_SERVER_MODEL_LOAD_MODELS_H_
#define HOOKLINE_SERVER_MODEL_LOAD_MODELS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/model/load.h"
#include "server/model/memory.h"
#include "server/model/model.h"

namespace hookline {

// Loads the models in their order, each with weights of its own. Before the first: names must be unique (an empty one
// is the last part of the path), and the models of one device must fit there together, counted by their files: halved
// where they become 2-byte types, so that what is refused cannot fit. Errors: INVALID_ARGUMENT (none, more than 64, a
// name twice or one of other characters than letters, digits, `.`, `_` and `-`), RESOURCE_EXHAUSTED (as CheckMemory),
// what `load` answers.
absl::StatusOr<std::vector<std::unique_ptr<Model>>> LoadModels(
    absl::Span<const ModelOptions> options,
    absl::FunctionRef<absl::StatusOr<std::unique_ptr<Model>>(const ModelOptions&)> load = LoadModel,
    absl::FunctionRef<std::optional<AvailableMemory>(const std::string& device)> available = MemoryOf);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_MODELS_H_
