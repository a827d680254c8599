#include "server/formats/zip_writer.h"

#include <zlib.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/base/little_endian.h"

namespace hookline {
namespace {

// A 32-bit field has this value where a zip64 field has the number.
constexpr uint64_t kElsewhere = std::numeric_limits<uint32_t>::max();
constexpr size_t kZip64Extra = 1;

// Appends the fields that both kinds of header share (APPNOTE 4.3.7 and 4.3.12).
void AppendShared(uint32_t crc32, uint64_t bytes, absl::string_view name, size_t extra_bytes, std::string* out) {
  AppendLittleEndian(45, 2, out);      // version needed: zip64
  AppendLittleEndian(0, 2, out);       // flags
  AppendLittleEndian(0, 2, out);       // stored
  AppendLittleEndian(0, 2, out);       // time
  AppendLittleEndian(0x0021, 2, out);  // date: 1980-01-01
  AppendLittleEndian(crc32, 4, out);
  AppendLittleEndian(std::min(bytes, kElsewhere), 4, out);
  AppendLittleEndian(std::min(bytes, kElsewhere), 4, out);
  AppendLittleEndian(name.size(), 2, out);
  AppendLittleEndian(extra_bytes, 2, out);
}

void AppendDirectoryEntry(absl::string_view name, uint32_t crc32, uint64_t bytes, uint64_t offset, std::string* out) {
  std::string extra;
  if (bytes >= kElsewhere) {
    AppendLittleEndian(bytes, 8, &extra);
    AppendLittleEndian(bytes, 8, &extra);
  }
  if (offset >= kElsewhere) AppendLittleEndian(offset, 8, &extra);
  const size_t extra_bytes = extra.empty() ? 0 : 4 + extra.size();
  absl::StrAppend(out, "PK\x01\x02");
  AppendLittleEndian(45, 2, out);  // made by
  AppendShared(crc32, bytes, name, extra_bytes, out);
  AppendLittleEndian(0, 2, out);  // comment
  AppendLittleEndian(0, 2, out);  // disk
  AppendLittleEndian(0, 2, out);  // internal attributes
  AppendLittleEndian(0, 4, out);  // external attributes
  AppendLittleEndian(std::min(offset, kElsewhere), 4, out);
  absl::StrAppend(out, name);
  if (!extra.empty()) {
    AppendLittleEndian(kZip64Extra, 2, out);
    AppendLittleEndian(extra.size(), 2, out);
    absl::StrAppend(out, extra);
  }
}

void AppendDirectoryEnd(uint64_t entries, uint64_t bytes, uint64_t offset, std::string* out) {
  absl::StrAppend(out, "PK\x06\x06");
  AppendLittleEndian(44, 8, out);  // size of what follows
  AppendLittleEndian(45, 2, out);
  AppendLittleEndian(45, 2, out);
  AppendLittleEndian(0, 4, out);
  AppendLittleEndian(0, 4, out);
  AppendLittleEndian(entries, 8, out);
  AppendLittleEndian(entries, 8, out);
  AppendLittleEndian(bytes, 8, out);
  AppendLittleEndian(offset, 8, out);
  absl::StrAppend(out, "PK\x06\x07");
  AppendLittleEndian(0, 4, out);
  AppendLittleEndian(offset + bytes, 8, out);
  AppendLittleEndian(1, 4, out);
  absl::StrAppend(out, "PK\x05\x06");
  AppendLittleEndian(0, 2, out);
  AppendLittleEndian(0, 2, out);
  AppendLittleEndian(entries, 2, out);
  AppendLittleEndian(entries, 2, out);
  AppendLittleEndian(std::min(bytes, kElsewhere), 4, out);
  AppendLittleEndian(std::min(offset, kElsewhere), 4, out);
  AppendLittleEndian(0, 2, out);
}

}  // namespace

std::string ZipEntryHeader(absl::string_view name, uint32_t crc32, uint64_t bytes) {
  std::string out = "PK\x03\x04";
  AppendShared(crc32, kElsewhere, name, 20, &out);
  absl::StrAppend(&out, name);
  AppendLittleEndian(kZip64Extra, 2, &out);
  AppendLittleEndian(16, 2, &out);
  AppendLittleEndian(bytes, 8, &out);
  AppendLittleEndian(bytes, 8, &out);
  return out;
}

ZipTrailer::ZipTrailer(absl::string_view name, uint32_t crc32, uint64_t bytes)
    : begin_(ZipEntryHeaderBytes(name.size()) + bytes) {
  AppendDirectoryEntry(name, crc32, bytes, /*offset=*/0, &directory_);
}

void ZipTrailer::Add(absl::string_view name, absl::string_view contents) {
  const auto crc = static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(contents.data()), contents.size()));
  AppendDirectoryEntry(name, crc, contents.size(), begin_ + entries_.size(), &directory_);
  absl::StrAppend(&entries_, "PK\x03\x04");
  AppendShared(crc, contents.size(), name, 0, &entries_);
  absl::StrAppend(&entries_, name, contents);
  ++count_;
}

std::string ZipTrailer::Finish() && {
  AppendDirectoryEnd(count_, directory_.size(), begin_ + entries_.size(), &directory_);
  return entries_ + directory_;
}

}  // namespace hookline
