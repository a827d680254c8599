// Opens the files of checkpoints.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FILE_H_
#define HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/base/input_file.h"

namespace hookline {

// The same as InputFile::Open, but FAILED_PRECONDITION for a Git LFS pointer, which Git leaves in place of a large file
// that was not fetched.
absl::StatusOr<std::shared_ptr<const InputFile>> OpenCheckpointFile(const std::string& path);

// The same as ReadWholeFile, with the same additional error.
absl::StatusOr<std::string> ReadCheckpointText(const std::string& path, int64_t max_bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FILE_H_
