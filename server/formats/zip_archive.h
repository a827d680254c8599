// Finds the entries of a zip archive without unpacking it (format: PKWARE APPNOTE 6.3.10, with zip64).
#ifndef HOOKLINE_SERVER_FORMATS_ZIP_ARCHIVE_H_
#define HOOKLINE_SERVER_FORMATS_ZIP_ARCHIVE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "server/base/input_file.h"

namespace hookline {

// Immutable.
class ZipArchive {
 public:
  // The place of an entry's contents in the file.
  struct Entry {
    int64_t offset = 0;
    int64_t bytes = 0;
    uint32_t crc = 0;  // CRC-32 of the contents, as the archive says
  };

  // Reads the central directory and checks the entries: each is stored, neither compressed nor encrypted, and lies
  // inside the file; no two overlap or have the same name. Their contents are not read yet. FAILED_PRECONDITION, naming
  // the file and the entry.
  static absl::StatusOr<ZipArchive> Open(std::shared_ptr<const InputFile> file);

  // Reads the central directory alone and returns the CRC-32 of each entry's contents by name, for archives with
  // compressed entries. FAILED_PRECONDITION, naming the file.
  static absl::StatusOr<absl::btree_map<std::string, uint32_t>> Checksums(const InputFile& file);

  // Returns the contents of entry `name`, which must exist, after checking their checksum. FAILED_PRECONDITION, naming
  // the file and the entry: the checksum is wrong, or the entry has more than `max_bytes`.
  absl::StatusOr<std::string> Read(const std::string& name, int64_t max_bytes) const;

  // Reads all contents of entry `name`, which must exist, and checks their checksum.
  absl::Status Check(const std::string& name) const;

  const std::shared_ptr<const InputFile>& file() const { return file_; }
  const absl::btree_map<std::string, Entry>& entries() const { return entries_; }

 private:
  std::shared_ptr<const InputFile> file_;
  absl::btree_map<std::string, Entry> entries_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_ZIP_ARCHIVE_H_
