// A file that must stay as it was when it was opened, such as a checkpoint or an archive. It is read piece by piece
// through ReadableFile. If another program changes it meanwhile, its reader gets an error; with a mapping it would get
// a signal.
#ifndef HOOKLINE_SERVER_BASE_INPUT_FILE_H_
#define HOOKLINE_SERVER_BASE_INPUT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"

namespace hookline {

// Thread-safe.
class InputFile {
 public:
  // Opens a regular file. Errors: those of OpenFile; FAILED_PRECONDITION, naming `path`: it is empty.
  static absl::StatusOr<std::shared_ptr<const InputFile>> Open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  // The size when it was opened.
  int64_t size() const { return facts_.bytes; }

  // Fills `out` with the bytes from `offset` on. FAILED_PRECONDITION if the file has become shorter; otherwise the
  // error of ReadableFile::ReadAt.
  absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const;

  // FAILED_PRECONDITION, naming the file, if its size or its modification time is no longer what it was at opening, or
  // if its path leads to another file. If all files of a checkpoint pass after the last byte was read, they belong to
  // one checkpoint.
  absl::Status CheckUnchanged() const;

 private:
  InputFile(std::unique_ptr<const ReadableFile> file, const FileFacts& facts) : file_(std::move(file)), facts_(facts) {}

  const std::unique_ptr<const ReadableFile> file_;
  const FileFacts facts_;
};

// Reads a whole file of at most `max_bytes`. Errors: those above; FAILED_PRECONDITION: it is larger.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_INPUT_FILE_H_
