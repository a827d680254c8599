// A file in memory without reading it: a private, read-only map.
#ifndef HOOKLINE_SERVER_BASE_MAPPED_FILE_H_
#define HOOKLINE_SERVER_BASE_MAPPED_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline {

// Immutable, so safe to share. Whoever truncates the file meanwhile ends the process with SIGBUS: map only what the
// operator named.
class MappedFile {
 public:
  // Maps the whole of a regular file. NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION (not a regular file, empty),
  // each naming `path`.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  absl::Span<const uint8_t> bytes() const { return {data_, static_cast<size_t>(size_)}; }

 private:
  MappedFile(std::string path, const uint8_t* data, int64_t size) : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const uint8_t* data_;
  int64_t size_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_MAPPED_FILE_H_
