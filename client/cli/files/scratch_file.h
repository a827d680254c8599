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

// Returns the temporary path of a file that will be `name` in `directory`: hidden, and different for each process.
std::string TemporaryPath(absl::string_view directory, absl::string_view name);

// Errors name the path. One thread at a time may use it.
class ScratchFile {
 public:
  // Creates a file whose temporary name is `path`. If the file system supports unnamed files, the file has no name
  // before Keep, so that not even SIGKILL leaves it behind; otherwise it is created at `path`, which must not exist.
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
  // Overwrites the beginning of the file.
  absl::Status Overwrite(absl::string_view begin);
  // Syncs the contents to the disk.
  absl::Status Sync();
  // Gives the file its final name `path`, in the same directory; replaces a file of that name.
  absl::Status Keep(const std::string& path);

 private:
  ScratchFile(std::string path, int fd, bool has_name) : path_(std::move(path)), fd_(fd), has_name_(has_name) {}

  std::string path_;
  const int fd_;
  bool has_name_;
  int64_t bytes_ = 0;
  bool kept_ = false;
};

// Makes renames in `directory` survive a power loss.
absl::Status SyncDirectory(const std::string& directory);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_SCRATCH_FILE_H_
