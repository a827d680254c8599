// Finds the entries of a zip archive without unpacking it (format: PKWARE APPNOTE 6.3.10, with zip64).
#ifndef HOOKLINE_SERVER_MODEL_CHECKPOINT_ZIP_ARCHIVE_H_
#define HOOKLINE_SERVER_MODEL_CHECKPOINT_ZIP_ARCHIVE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/mapped_file.h"

namespace hookline {

// Immutable. Its spans live as long as the file.
class ZipArchive {
 public:
  // Reads the central directory and checks it against the entries: stored, not compressed or encrypted, inside the
  // file, none overlapping another, no name twice, each with its CRC-32. FAILED_PRECONDITION naming the file and the
  // entry.
  static absl::StatusOr<ZipArchive> Open(std::shared_ptr<const MappedFile> file);

  // What the central directory alone says: the CRC-32 of each entry's contents by name, for archives with compressed
  // entries. FAILED_PRECONDITION naming the file.
  static absl::StatusOr<absl::btree_map<std::string, uint32_t>> Checksums(const MappedFile& file);

  const std::shared_ptr<const MappedFile>& file() const { return file_; }
  const absl::btree_map<std::string, absl::Span<const uint8_t>>& entries() const { return entries_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  absl::btree_map<std::string, absl::Span<const uint8_t>> entries_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CHECKPOINT_ZIP_ARCHIVE_H_
