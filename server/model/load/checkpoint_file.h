// Opening the files of checkpoints.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FILE_H_
#define HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/base/input_file.h"

namespace hookline {

// InputFile::Open, and FAILED_PRECONDITION for what Git leaves where large files were not fetched: a pointer to the
// file.
absl::StatusOr<std::shared_ptr<const InputFile>> OpenCheckpointFile(const std::string& path);

// ReadWholeFile, and the same error.
absl::StatusOr<std::string> ReadCheckpointText(const std::string& path, int64_t max_bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_CHECKPOINT_FILE_H_
