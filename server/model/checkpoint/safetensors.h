// Reads safetensors files (format: github.com/huggingface/safetensors, README, "Format"), one or several with an index.
#ifndef HOOKLINE_SERVER_MODEL_CHECKPOINT_SAFETENSORS_H_
#define HOOKLINE_SERVER_MODEL_CHECKPOINT_SAFETENSORS_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/model/checkpoint/state_dict.h"

namespace hookline {

// Reads one file's header and checks it: length, JSON, dtypes, shapes, offsets within the file, no overlaps, no holes.
// Errors: what InputFile says; FAILED_PRECONDITION naming the file, the tensor and what is wrong with it.
absl::StatusOr<StateDict> ReadSafetensors(const std::string& path);

// A folder as Hugging Face's save_pretrained leaves it: `model.safetensors`, or `model.safetensors.index.json` and the
// shards that its `weight_map` lists. Errors as above, and NOT_FOUND where there is neither.
absl::StatusOr<StateDict> ReadSafetensorsFolder(const std::string& folder);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CHECKPOINT_SAFETENSORS_H_
