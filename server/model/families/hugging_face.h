// Checkpoints in the format of Hugging Face transformers: config.json and safetensors files.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/load.h"
#include "server/model/model.h"

namespace hookline {

// Returns whether `folder` holds a config.json.
bool IsHuggingFaceFolder(const std::string& folder);

// Returns what the weights of options.path will take on the devices that `stages` names, in `dtype`. Reads what the
// files say of them, and refuses what LoadHuggingFace does.
absl::StatusOr<std::vector<MemoryNeed>> CountHuggingFace(const ModelOptions& options, std::vector<Stage> stages,
                                                         at::ScalarType dtype);

// Loads config.json and model.safetensors (or its shards) of options.path. `info` holds what is known already (name,
// device, dtype), `stages` names the devices of the stages, at least one, and is completed. Refuses, by field and
// value, a configuration that asks for what is not computed, and by name a weight that is missing, left over or of
// another shape. Errors as LoadModel.
absl::StatusOr<std::unique_ptr<Model>> LoadHuggingFace(const ModelOptions& options, ModelInfo info,
                                                       at::ScalarType dtype, std::vector<Stage>* stages);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_
