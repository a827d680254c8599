// Reads the tensors of a safetensors file.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_SAFETENSORS_CHECKPOINT_H_
#define HOOKLINE_SERVER_MODEL_LOAD_SAFETENSORS_CHECKPOINT_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/model/load/state_dict.h"

namespace hookline {

// Reads one file's header and checks it as ReadSafetensorsHeader does. Errors: those of InputFile; FAILED_PRECONDITION
// naming the file, the tensor and what is wrong with it.
absl::StatusOr<StateDict> ReadSafetensors(const std::string& path);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_SAFETENSORS_CHECKPOINT_H_
