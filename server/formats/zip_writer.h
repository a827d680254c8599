// Writes a zip archive of stored (not compressed) entries, of which the first may be larger than memory: its contents
// can be written before its size and checksum are known (format: PKWARE APPNOTE 6.3.10, with zip64).
//
//   ZipEntryHeader("values", crc32, bytes), the contents, and then
//   ZipTrailer trailer("values", crc32, bytes);
//   trailer.Add("version", "3\n");
//   std::move(trailer).Finish()
#ifndef HOOKLINE_SERVER_FORMATS_ZIP_WRITER_H_
#define HOOKLINE_SERVER_FORMATS_ZIP_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace hookline {

// Returns the bytes before the contents of the first entry. `crc32` is zlib's.
std::string ZipEntryHeader(absl::string_view name, uint32_t crc32, uint64_t bytes);

// Returns the size of ZipEntryHeader for a name of that length, whatever the contents.
constexpr size_t ZipEntryHeaderBytes(size_t name_bytes) { return 30 + name_bytes + 20; }

// Makes the rest of the file after the contents of the first entry: smaller entries, and the directory of all.
class ZipTrailer {
 public:
  // The first entry begins at the beginning of the file.
  ZipTrailer(absl::string_view name, uint32_t crc32, uint64_t bytes);

  void Add(absl::string_view name, absl::string_view contents);

  std::string Finish() &&;

 private:
  uint64_t begin_;  // where the trailer begins in the file
  std::string entries_;
  std::string directory_;
  uint64_t count_ = 1;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_ZIP_WRITER_H_
