// Reads a file or standard input; another thread can stop a read that waits.
#ifndef HOOKLINE_CLIENT_CLI_FILES_BYTE_READER_H_
#define HOOKLINE_CLIENT_CLI_FILES_BYTE_READER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline::cli {

// Any thread may call Stop; the rest belongs to one thread at a time.
class ByteReader {
 public:
  // Opens `path`; `-` is standard input. NOT_FOUND, PERMISSION_DENIED and FAILED_PRECONDITION (a directory) name it.
  static absl::StatusOr<std::unique_ptr<ByteReader>> Open(const std::string& path);
  ~ByteReader();
  ByteReader(const ByteReader&) = delete;
  ByteReader& operator=(const ByteReader&) = delete;

  // Waits for bytes and returns how many came; 0 at the end. Returns CANCELLED after Stop.
  absl::StatusOr<size_t> Read(absl::Span<char> bytes);

  // Makes reads fail from now on, including one that is waiting.
  void Stop();

  // Goes back to the beginning; reads work again. FAILED_PRECONDITION for input that cannot be read twice, as a pipe.
  absl::Status Rewind();

  // The file's size; none for input whose size is unknown, such as a pipe.
  std::optional<int64_t> size() const { return size_; }
  const std::string& name() const { return name_; }

 private:
  ByteReader(std::string name, int fd, int stop_fd);

  const std::string name_;  // for messages
  const int fd_;
  const int stop_fd_;  // readable once stopped
  std::optional<int64_t> size_;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_BYTE_READER_H_
