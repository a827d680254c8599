// A file that is read piece by piece. If another program changes it meanwhile, its reader gets an error; a map would
// get a signal.
#ifndef HOOKLINE_SERVER_BASE_INPUT_FILE_H_
#define HOOKLINE_SERVER_BASE_INPUT_FILE_H_

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline {

// Thread-safe.
class InputFile {
 public:
  // Opens a regular file. NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION (not a regular file, empty), each naming
  // `path`.
  static absl::StatusOr<std::shared_ptr<const InputFile>> Open(const std::string& path);

  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  // When it was opened.
  int64_t size() const { return facts_.st_size; }

  // Fills `out` with the bytes from `offset` on. FAILED_PRECONDITION if the file ends before; otherwise the disk's
  // error.
  absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const;

  // FAILED_PRECONDITION, naming the file, if its size or its time of change is no longer what it was at opening, or if
  // its path leads to another file. If all files of a checkpoint pass after the last byte was read, they belong to one
  // checkpoint.
  absl::Status CheckUnchanged() const;

 private:
  InputFile(std::string path, int fd, const struct stat& facts) : path_(std::move(path)), fd_(fd), facts_(facts) {}

  std::string path_;
  int fd_;
  struct stat facts_;
};

// Reads a whole file of at most `max_bytes`. Errors as above, and FAILED_PRECONDITION for a larger one.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_INPUT_FILE_H_
