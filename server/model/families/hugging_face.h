// Checkpoints in the format of Hugging Face transformers: config.json and safetensors files.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/model/load.h"
#include "server/model/model.h"

namespace hookline {

// Returns whether `folder` holds a config.json.
bool IsHuggingFaceFolder(const std::string& folder);

// Returns what the weights of options.path will take on the device in `dtype`. Reads what the files say of them, and
// refuses what LoadHuggingFace does.
absl::StatusOr<int64_t> CountHuggingFace(const ModelOptions& options, at::ScalarType dtype);

// Loads config.json and model.safetensors (or its shards) of options.path. `info` holds what is known already (name,
// device, dtype). Refuses, by field and value, a configuration that asks for what is not computed, and by name a weight
// that is missing, left over or of another shape. Errors as LoadModel.
absl::StatusOr<std::unique_ptr<Model>> LoadHuggingFace(const ModelOptions& options, ModelInfo info, at::Device device,
                                                       at::ScalarType dtype);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_HUGGING_FACE_H_
