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

// Returns the block of a weight by its name: the first part between dots that is a number. Returns none for weights
// before or after the blocks.
std::optional<int> BlockOf(absl::string_view weight);

// Returns the index of a weight's stage. A weight of a block belongs to the block's stage. Otherwise weights of the
// last norm and of the unembedding, by their usual names, belong to the last stage, all others to the first.
size_t StageOf(absl::string_view weight, absl::Span<const Stage> stages);

// Splits `blocks` blocks over `devices` so that the largest stage is as small as possible. `weights` gives the bytes of
// each weight on its device, by name. INVALID_ARGUMENT: fewer blocks than devices.
absl::StatusOr<std::vector<Stage>> SplitBlocks(const std::map<std::string, int64_t>& weights, int blocks,
                                               absl::Span<const std::string> devices);

// Splits the blocks of the model `name` over the devices that `stages` names, and completes the stages. Returns the
// bytes that each device needs. `weights` and errors: see SplitBlocks.
absl::StatusOr<std::vector<MemoryNeed>> PlaceWeights(const std::string& name,
                                                     const std::map<std::string, int64_t>& weights, int blocks,
                                                     std::vector<Stage>* stages);

// Makes the taker put each weight on the device of its stage. Before the blocks are divided, this is only right for
// weights that belong to no block.
void TakeToStages(const std::vector<Stage>& stages, WeightTaker* take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_STAGES_H_
