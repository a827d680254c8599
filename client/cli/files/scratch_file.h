// A file that is being written under a temporary name.
#ifndef HOOKLINE_CLIENT_CLI_FILES_SCRATCH_FILE_H_
#define HOOKLINE_CLIENT_CLI_FILES_SCRATCH_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline::cli {

// The path at which a file that is to be `name` in `directory` is written: hidden, and another for each process.
std::string TemporaryPath(absl::string_view directory, absl::string_view name);

// Errors name the path. One thread at a time.
class ScratchFile {
 public:
  // A file that `path` is the temporary name of. Where the file system can, it has none before Keep, so that not even a
  // kill leaves it behind; elsewhere it is created, and what stands there is an error.
  static absl::StatusOr<std::unique_ptr<ScratchFile>> Create(std::string path);
  // Removes the file unless Keep was called.
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  int64_t bytes() const { return bytes_; }
  absl::Status Append(absl::Span<const absl::Span<const uint8_t>> pieces);
  absl::Status Append(const void* data, int64_t bytes);
  // Appends the first `bytes` bytes of another file.
  absl::Status AppendFrom(const ScratchFile& other, int64_t bytes);
  // Writes over the beginning.
  absl::Status Overwrite(absl::string_view begin);
  // Brings the contents to the disk.
  absl::Status Sync();
  // Gives the file its name in the same directory, in place of what has it.
  absl::Status Keep(const std::string& path);

 private:
  ScratchFile(std::string path, int fd, bool has_name) : path_(std::move(path)), fd_(fd), has_name_(has_name) {}

  std::string path_;
  const int fd_;
  bool has_name_;
  int64_t bytes_ = 0;
  bool kept_ = false;
};

// Makes names that were given in `directory` survive a power loss.
absl::Status SyncDirectory(const std::string& directory);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_SCRATCH_FILE_H_
