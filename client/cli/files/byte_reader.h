// Reads a file or standard input, in a way that another thread can end.
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
  // `-` is standard input. NOT_FOUND, PERMISSION_DENIED or FAILED_PRECONDITION (a directory), naming `path`.
  static absl::StatusOr<std::unique_ptr<ByteReader>> Open(const std::string& path);
  ~ByteReader();
  ByteReader(const ByteReader&) = delete;
  ByteReader& operator=(const ByteReader&) = delete;

  // Waits for bytes and returns how many came; 0 at the end. CANCELLED after Stop.
  absl::StatusOr<size_t> Read(absl::Span<char> bytes);

  // Makes reads fail from now on, also one that waits.
  void Stop();

  // Goes to the beginning; reads work again. FAILED_PRECONDITION for what cannot be read twice, such as a pipe.
  absl::Status Rewind();

  // The file's size; none for what has no end yet.
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
