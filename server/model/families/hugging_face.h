// Loads checkpoints in the format of Hugging Face transformers: config.json and safetensors files.
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

// Returns the bytes that the weights of options.path will take, in `dtype`, on the devices that `stages` names. Reads
// only the files' descriptions of the weights, and refuses what LoadHuggingFace refuses.
absl::StatusOr<std::vector<MemoryNeed>> CountHuggingFace(const ModelOptions& options, std::vector<Stage> stages,
                                                         at::ScalarType dtype);

// Loads config.json and model.safetensors (or its shards) of options.path. `info` holds what is already known (name,
// device, dtype). `stages` names the devices of the stages, at least one, and is completed. Refuses, by field and
// value, a configuration that is not supported and, by name, a weight that is missing, left over or of another shape.
// Errors: those of LoadModel.
absl::StatusOr<std::unique_ptr<Model>> LoadHuggingFace(const ModelOptions& options, ModelInfo info,
                                                       at::ScalarType dtype, std::vector<Stage>* stages);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_
