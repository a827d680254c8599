// Reads the weights in a folder that Hugging Face's save_pretrained wrote.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FOLDER_H_
#define HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FOLDER_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/model/load/state_dict.h"

namespace hookline {

// Reads the first of these that exists: `model.safetensors`; the shards that `model.safetensors.index.json` lists in
// its `weight_map`; `pytorch_model.bin`; the shards of `pytorch_model.bin.index.json`. Errors: those of ReadSafetensors
// and ReadTorchCheckpoint; FAILED_PRECONDITION for an index that its shards contradict; NOT_FOUND if none exists.
absl::StatusOr<StateDict> ReadCheckpointFolder(const std::string& folder);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FOLDER_H_
