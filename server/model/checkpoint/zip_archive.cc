#include "server/model/checkpoint/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kCentralHeader = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50;
constexpr uint32_t kZip64End = 0x06064b50;
constexpr uint32_t kZip64Locator = 0x07064b50;
constexpr uint64_t kLocalHeaderBytes = 30;
constexpr uint64_t kCentralHeaderBytes = 46;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kZip64LocatorBytes = 20;
constexpr uint64_t kZip64EndBytes = 56;
constexpr uint64_t kMaxCommentBytes = 65535;
constexpr uint16_t kEncrypted = 1;
constexpr uint16_t kZip64Extra = 1;
// Longer than torch.save ever writes; bounds what error messages quote.
constexpr size_t kMaxNameBytes = 1024;

// Little-endian numbers; the caller has checked that they lie inside.
uint64_t Read(absl::Span<const uint8_t> bytes, uint64_t offset, int count) {
  uint64_t value = 0;
  for (int i = 0; i < count; ++i) value |= static_cast<uint64_t>(bytes[offset + i]) << (8 * i);
  return value;
}

bool Inside(uint64_t offset, uint64_t length, uint64_t size) { return offset <= size && length <= size - offset; }

struct Directory {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t entries = 0;
};

struct Record {
  std::string name;
  uint16_t flags = 0;
  uint16_t method = 0;
  uint32_t crc = 0;
  uint64_t packed = 0;
  uint64_t size = 0;
  uint64_t offset = 0;
};

class Reader {
 public:
  explicit Reader(const MappedFile& file) : path_(file.path()), bytes_(file.bytes()) {}

  absl::Status Bad(absl::string_view what) const {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": ", what, "; the file is damaged, cut short, or not what torch.save writes"));
  }
  absl::Status BadEntry(absl::string_view name, absl::string_view what) const {
    return Bad(absl::StrCat("entry '", absl::Utf8SafeCHexEscape(name), "' ", what));
  }

  absl::StatusOr<Directory> FindDirectory() const {
    const uint64_t size = bytes_.size();
    if (size < kEndBytes) return Bad("not a zip archive: too short");
    const uint64_t lowest = size - std::min(size, kEndBytes + kMaxCommentBytes);
    uint64_t end = size - kEndBytes;
    while (Read(bytes_, end, 4) != kEnd) {
      if (end == lowest) return Bad("not a zip archive: it has no end of central directory");
      --end;
    }
    Directory directory{Read(bytes_, end + 16, 4), Read(bytes_, end + 12, 4), Read(bytes_, end + 10, 2)};
    if (end >= kZip64LocatorBytes && Read(bytes_, end - kZip64LocatorBytes, 4) == kZip64Locator) {
      const uint64_t end64 = Read(bytes_, end - kZip64LocatorBytes + 8, 8);
      if (!Inside(end64, kZip64EndBytes, size) || Read(bytes_, end64, 4) != kZip64End) {
        return Bad("its zip64 end of central directory is not where the locator says");
      }
      directory = {Read(bytes_, end64 + 48, 8), Read(bytes_, end64 + 40, 8), Read(bytes_, end64 + 32, 8)};
    }
    if (!Inside(directory.offset, directory.bytes, end)) return Bad("its central directory lies outside the file");
    if (directory.entries > directory.bytes / kCentralHeaderBytes) {
      return Bad("its central directory counts more entries than it has room for");
    }
    return directory;
  }

  absl::StatusOr<Record> ReadRecord(const Directory& directory, uint64_t* offset) const {
    const uint64_t end = directory.offset + directory.bytes;
    if (!Inside(*offset, kCentralHeaderBytes, end) || Read(bytes_, *offset, 4) != kCentralHeader) {
      return Bad("its central directory is cut short");
    }
    Record record;
    record.flags = static_cast<uint16_t>(Read(bytes_, *offset + 8, 2));
    record.method = static_cast<uint16_t>(Read(bytes_, *offset + 10, 2));
    record.crc = static_cast<uint32_t>(Read(bytes_, *offset + 16, 4));
    record.packed = Read(bytes_, *offset + 20, 4);
    record.size = Read(bytes_, *offset + 24, 4);
    record.offset = Read(bytes_, *offset + 42, 4);
    const uint64_t name_bytes = Read(bytes_, *offset + 28, 2);
    const uint64_t extra_bytes = Read(bytes_, *offset + 30, 2);
    const uint64_t comment_bytes = Read(bytes_, *offset + 32, 2);
    const uint64_t name = *offset + kCentralHeaderBytes;
    if (!Inside(name, name_bytes + extra_bytes + comment_bytes, end)) return Bad("its central directory is cut short");
    if (name_bytes > kMaxNameBytes) return Bad(absl::StrCat("an entry's name has ", name_bytes, " bytes"));
    record.name.assign(reinterpret_cast<const char*>(bytes_.data() + name), name_bytes);
    RETURN_IF_ERROR(ReadZip64Extra(bytes_.subspan(name + name_bytes, extra_bytes), &record));
    *offset = name + name_bytes + extra_bytes + comment_bytes;
    return record;
  }

  absl::StatusOr<absl::Span<const uint8_t>> Data(const Record& record) const {
    if ((record.flags & kEncrypted) != 0) return BadEntry(record.name, "is encrypted");
    if (record.method != 0 || record.packed != record.size) return BadEntry(record.name, "is compressed");
    if (!Inside(record.offset, kLocalHeaderBytes, bytes_.size()) || Read(bytes_, record.offset, 4) != kLocalHeader) {
      return BadEntry(record.name, "is not where the central directory says");
    }
    const uint64_t begin =
        record.offset + kLocalHeaderBytes + Read(bytes_, record.offset + 26, 2) + Read(bytes_, record.offset + 28, 2);
    if (!Inside(begin, record.size, bytes_.size())) return BadEntry(record.name, "reaches past the end of the file");
    return bytes_.subspan(begin, record.size);
  }

 private:
  absl::Status ReadZip64Extra(absl::Span<const uint8_t> extra, Record* record) const {
    for (uint64_t at = 0; at + 4 <= extra.size();) {
      const uint64_t id = Read(extra, at, 2);
      const uint64_t length = Read(extra, at + 2, 2);
      at += 4;
      if (!Inside(at, length, extra.size())) return BadEntry(record->name, "has a damaged extra field");
      if (id == kZip64Extra) {
        uint64_t field = at;
        for (uint64_t* number : {&record->size, &record->packed, &record->offset}) {
          if (*number != 0xffffffff) continue;
          if (field + 8 > at + length) return BadEntry(record->name, "has a damaged zip64 field");
          *number = Read(extra, field, 8);
          field += 8;
        }
      }
      at += length;
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  const absl::Span<const uint8_t> bytes_;
};

}  // namespace

absl::StatusOr<ZipArchive> ZipArchive::Open(std::shared_ptr<const MappedFile> file) {
  const Reader reader(*file);
  ASSIGN_OR_RETURN(const Directory directory, reader.FindDirectory());
  ZipArchive archive;
  std::vector<std::pair<const uint8_t*, uint64_t>> spans;
  std::vector<Record> records;
  uint64_t offset = directory.offset;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    ASSIGN_OR_RETURN(Record record, reader.ReadRecord(directory, &offset));
    ASSIGN_OR_RETURN(const absl::Span<const uint8_t> data, reader.Data(record));
    if (!data.empty()) spans.emplace_back(data.data(), data.size());
    if (!archive.entries_.emplace(record.name, data).second) return reader.BadEntry(record.name, "is there twice");
    records.push_back(std::move(record));
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i - 1].first + spans[i - 1].second > spans[i].first) return reader.Bad("two of its entries overlap");
  }
  // Only now: entries that share their bytes would have them summed again and again.
  for (const Record& record : records) {
    const absl::Span<const uint8_t> data = archive.entries_.at(record.name);
    if (crc32_z(0, data.data(), data.size()) != record.crc) {
      return reader.BadEntry(record.name, "does not have the checksum that the archive gives");
    }
  }
  archive.file_ = std::move(file);
  return archive;
}

absl::StatusOr<absl::btree_map<std::string, uint32_t>> ZipArchive::Checksums(const MappedFile& file) {
  const Reader reader(file);
  ASSIGN_OR_RETURN(const Directory directory, reader.FindDirectory());
  absl::btree_map<std::string, uint32_t> checksums;
  uint64_t offset = directory.offset;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    ASSIGN_OR_RETURN(const Record record, reader.ReadRecord(directory, &offset));
    if (!checksums.emplace(record.name, record.crc).second) return reader.BadEntry(record.name, "is there twice");
  }
  return checksums;
}

}  // namespace hookline
