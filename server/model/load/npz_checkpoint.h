// Reads the arrays of an .npz file that numpy.savez wrote: a zip archive of .npy files.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_NPZ_CHECKPOINT_H_
#define HOOKLINE_SERVER_MODEL_LOAD_NPZ_CHECKPOINT_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/model/load/state_dict.h"

namespace hookline {

// Returns the arrays by their names, without ".npy". Reads arrays of float16, float32 and float64, in either order.
// Others, and compressed ones (numpy.savez_compressed), are FAILED_PRECONDITION, naming the file and the array.
absl::StatusOr<StateDict> ReadNpz(const std::string& path);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_NPZ_CHECKPOINT_H_
