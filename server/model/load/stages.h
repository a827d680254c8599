// Splits a model's blocks over devices, by the bytes of their weights.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_STAGES_H_
#define HOOKLINE_SERVER_MODEL_LOAD_STAGES_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/model/load/memory_check.h"
#include "server/model/load/weight_taker.h"
#include "server/model/stage.h"

namespace hookline {

// The block that a weight belongs to, by its name: the first part between dots that is a number. None: it stands before
// the blocks or after them.
std::optional<int> BlockOf(absl::string_view weight);

// The place among `stages` of a weight: with its block or, where it belongs to none, on the last if it is of the last
// norm or of the unembedding, by the names that checkpoints give them, else on the first.
size_t StageOf(absl::string_view weight, absl::Span<const Stage> stages);

// Splits `blocks` blocks over `devices` so that the largest stage is as small as possible. `weights`: the bytes that
// each takes on its device, by name. INVALID_ARGUMENT: fewer blocks than devices.
absl::StatusOr<std::vector<Stage>> SplitBlocks(const std::map<std::string, int64_t>& weights, int blocks,
                                               absl::Span<const std::string> devices);

// Splits the blocks of the model `name` over the devices that `stages` names, and completes the stages. Returns what
// each device needs for `weights`, as SplitBlocks has them. Errors as SplitBlocks.
absl::StatusOr<std::vector<MemoryNeed>> PlaceWeights(const std::string& name,
                                                     const std::map<std::string, int64_t>& weights, int blocks,
                                                     std::vector<Stage>* stages);

// The taker puts each weight where it belongs. Before the blocks are divided this holds for weights of no block alone.
void TakeToStages(const std::vector<Stage>& stages, WeightTaker* take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_STAGES_H_
