// Reads safetensors files (format: github.com/huggingface/safetensors, README, "Format").
#ifndef HOOKLINE_SERVER_MODEL_CHECKPOINT_SAFETENSORS_H_
#define HOOKLINE_SERVER_MODEL_CHECKPOINT_SAFETENSORS_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/model/checkpoint/state_dict.h"

namespace hookline {

// Reads one file's header and checks it: length, JSON, dtypes, shapes, offsets within the file, no overlaps, no holes.
// Errors: what InputFile says; FAILED_PRECONDITION naming the file, the tensor and what is wrong with it.
absl::StatusOr<StateDict> ReadSafetensors(const std::string& path);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CHECKPOINT_SAFETENSORS_H_
