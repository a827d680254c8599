#include "server/formats/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/little_endian.h"
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
// torch.save never writes longer names; this bounds what error messages quote.
constexpr size_t kMaxNameBytes = 1024;
// An entry takes about a hundred bytes, a tensor takes one entry, and the unpickler reads at most some
// hundred thousand.
constexpr uint64_t kMaxDirectoryBytes = uint64_t{64} << 20;

// Check reads this much at a time.
constexpr int64_t kPieceBytes = int64_t{1} << 20;
constexpr absl::string_view kWrongChecksum = "does not have the checksum that the archive gives";

// Returns a number that the caller has checked to lie inside `bytes`.
uint64_t Number(absl::Span<const uint8_t> bytes, uint64_t offset, size_t count) {
  return ReadLittleEndian(bytes.subspan(offset, count));
}

struct CentralDirectory {
  uint64_t entries = 0;
  std::vector<uint8_t> bytes;
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
  explicit Reader(const InputFile& file) : file_(file) {}

  absl::Status Bad(absl::string_view what) const {
    return absl::FailedPreconditionError(
        absl::StrCat(file_.path(), ": ", what, "; the file is damaged, cut short, or not what torch.save writes"));
  }
  absl::Status BadEntry(absl::string_view name, absl::string_view what) const {
    return Bad(absl::StrCat("entry ", Quoted(name), " ", what));
  }

  absl::StatusOr<CentralDirectory> ReadDirectory() const {
    const uint64_t size = static_cast<uint64_t>(file_.size());
    if (size < kEndBytes) return Bad("not a zip archive: too short");
    // The tail can hold the end of the directory and the locator before it.
    const uint64_t tail_bytes = std::min(size, kEndBytes + kMaxCommentBytes + kZip64LocatorBytes);
    ASSIGN_OR_RETURN(const std::vector<uint8_t> tail, Bytes(size - tail_bytes, tail_bytes));
    const uint64_t lowest = tail_bytes - std::min(tail_bytes, kEndBytes + kMaxCommentBytes);
    uint64_t end = tail_bytes - kEndBytes;
    while (Number(tail, end, 4) != kEnd) {
      if (end == lowest) return Bad("not a zip archive: it has no end of central directory");
      --end;
    }
    uint64_t entries = Number(tail, end + 10, 2);
    uint64_t bytes = Number(tail, end + 12, 4);
    uint64_t offset = Number(tail, end + 16, 4);
    if (end >= kZip64LocatorBytes && Number(tail, end - kZip64LocatorBytes, 4) == kZip64Locator) {
      const uint64_t end64 = Number(tail, end - kZip64LocatorBytes + 8, 8);
      std::vector<uint8_t> record;
      if (RangeFits(end64, kZip64EndBytes, size)) {
        ASSIGN_OR_RETURN(record, Bytes(end64, kZip64EndBytes));
      }
      if (record.empty() || Number(record, 0, 4) != kZip64End) {
        return Bad("its zip64 end of central directory is not where the locator says");
      }
      entries = Number(record, 32, 8);
      bytes = Number(record, 40, 8);
      offset = Number(record, 48, 8);
    }
    if (!RangeFits(offset, bytes, size - tail_bytes + end)) return Bad("its central directory lies outside the file");
    if (bytes > kMaxDirectoryBytes) {
      return Bad(
          absl::StrCat("its central directory has ", bytes, " bytes; at most ", kMaxDirectoryBytes, " are read"));
    }
    if (entries > bytes / kCentralHeaderBytes) {
      return Bad("its central directory counts more entries than it has room for");
    }
    CentralDirectory directory;
    directory.entries = entries;
    ASSIGN_OR_RETURN(directory.bytes, Bytes(offset, bytes));
    return directory;
  }

  // Returns the record at `offset` in the directory and moves `offset` to the next one.
  absl::StatusOr<Record> ReadRecord(const CentralDirectory& directory, uint64_t* offset) const {
    const absl::Span<const uint8_t> bytes = directory.bytes;
    if (!RangeFits(*offset, kCentralHeaderBytes, bytes.size()) || Number(bytes, *offset, 4) != kCentralHeader) {
      return Bad("its central directory is cut short");
    }
    Record record;
    record.flags = static_cast<uint16_t>(Number(bytes, *offset + 8, 2));
    record.method = static_cast<uint16_t>(Number(bytes, *offset + 10, 2));
    record.crc = static_cast<uint32_t>(Number(bytes, *offset + 16, 4));
    record.packed = Number(bytes, *offset + 20, 4);
    record.size = Number(bytes, *offset + 24, 4);
    record.offset = Number(bytes, *offset + 42, 4);
    const uint64_t name_bytes = Number(bytes, *offset + 28, 2);
    const uint64_t extra_bytes = Number(bytes, *offset + 30, 2);
    const uint64_t comment_bytes = Number(bytes, *offset + 32, 2);
    const uint64_t name = *offset + kCentralHeaderBytes;
    const uint64_t rest = name_bytes + extra_bytes + comment_bytes;  // a sum of three 16-bit numbers
    if (!RangeFits(name, rest, bytes.size())) return Bad("its central directory is cut short");
    if (name_bytes > kMaxNameBytes) return Bad(absl::StrCat("an entry's name has ", name_bytes, " bytes"));
    record.name.assign(reinterpret_cast<const char*>(bytes.data() + name), name_bytes);
    RETURN_IF_ERROR(ReadZip64Extra(bytes.subspan(name + name_bytes, extra_bytes), &record));
    *offset = name + rest;
    return record;
  }

  // Finds the contents of `record`, whose place the entry's own header gives.
  absl::StatusOr<ZipArchive::Entry> Find(const Record& record) const {
    if ((record.flags & kEncrypted) != 0) return BadEntry(record.name, "is encrypted");
    if (record.method != 0 || record.packed != record.size) return BadEntry(record.name, "is compressed");
    std::vector<uint8_t> header;
    if (RangeFits(record.offset, kLocalHeaderBytes, file_.size())) {
      ASSIGN_OR_RETURN(header, Bytes(record.offset, kLocalHeaderBytes));
    }
    if (header.empty() || Number(header, 0, 4) != kLocalHeader) {
      return BadEntry(record.name, "is not where the central directory says");
    }
    const CheckedInt64 begin =
        CheckedInt64(record.offset) + kLocalHeaderBytes + Number(header, 26, 2) + Number(header, 28, 2);
    if (!RangeFits(begin, record.size, file_.size())) {
      return BadEntry(record.name, "reaches past the end of the file");
    }
    return ZipArchive::Entry{*begin.value(), static_cast<int64_t>(record.size), record.crc};
  }

 private:
  // Returns bytes that the caller has checked to lie inside the file.
  absl::StatusOr<std::vector<uint8_t>> Bytes(uint64_t offset, uint64_t count) const {
    std::vector<uint8_t> bytes(count);
    RETURN_IF_ERROR(file_.ReadAt(static_cast<int64_t>(offset), absl::MakeSpan(bytes)));
    return bytes;
  }

  absl::Status ReadZip64Extra(absl::Span<const uint8_t> extra, Record* record) const {
    for (uint64_t at = 0; at + 4 <= extra.size();) {
      const uint64_t id = Number(extra, at, 2);
      const uint64_t length = Number(extra, at + 2, 2);
      at += 4;
      if (!RangeFits(at, length, extra.size())) return BadEntry(record->name, "has a damaged extra field");
      if (id == kZip64Extra) {
        uint64_t field = at;
        for (uint64_t* number : {&record->size, &record->packed, &record->offset}) {
          if (*number != 0xffffffff) continue;
          if (field + 8 > at + length) return BadEntry(record->name, "has a damaged zip64 field");
          *number = Number(extra, field, 8);
          field += 8;
        }
      }
      at += length;
    }
    return absl::OkStatus();
  }

  const InputFile& file_;
};

}  // namespace

absl::StatusOr<ZipArchive> ZipArchive::Open(std::shared_ptr<const InputFile> file) {
  const Reader reader(*file);
  ASSIGN_OR_RETURN(const CentralDirectory directory, reader.ReadDirectory());
  ZipArchive archive;
  std::vector<std::pair<int64_t, int64_t>> ranges;  // begin and end of each entry that is not empty
  uint64_t offset = 0;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    ASSIGN_OR_RETURN(const Record record, reader.ReadRecord(directory, &offset));
    ASSIGN_OR_RETURN(const Entry entry, reader.Find(record));
    if (entry.bytes > 0) ranges.emplace_back(entry.offset, entry.offset + entry.bytes);
    if (!archive.entries_.emplace(record.name, entry).second) return reader.BadEntry(record.name, "appears twice");
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i - 1].second > ranges[i].first) return reader.Bad("two of its entries overlap");
  }
  archive.file_ = std::move(file);
  return archive;
}

absl::StatusOr<absl::btree_map<std::string, uint32_t>> ZipArchive::Checksums(const InputFile& file) {
  const Reader reader(file);
  ASSIGN_OR_RETURN(const CentralDirectory directory, reader.ReadDirectory());
  absl::btree_map<std::string, uint32_t> checksums;
  uint64_t offset = 0;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    ASSIGN_OR_RETURN(const Record record, reader.ReadRecord(directory, &offset));
    if (!checksums.emplace(record.name, record.crc).second) return reader.BadEntry(record.name, "appears twice");
  }
  return checksums;
}

absl::StatusOr<std::string> ZipArchive::Read(const std::string& name, int64_t max_bytes) const {
  const Entry& entry = entries_.at(name);
  const Reader reader(*file_);
  if (entry.bytes > max_bytes) {
    return reader.BadEntry(name, absl::StrCat("has ", entry.bytes, " bytes; at most ", max_bytes, " are read"));
  }
  std::string contents(static_cast<size_t>(entry.bytes), '\0');
  RETURN_IF_ERROR(
      file_->ReadAt(entry.offset, absl::MakeSpan(reinterpret_cast<uint8_t*>(contents.data()), contents.size())));
  if (crc32_z(0, reinterpret_cast<const Bytef*>(contents.data()), contents.size()) != entry.crc) {
    return reader.BadEntry(name, kWrongChecksum);
  }
  return contents;
}

absl::Status ZipArchive::Check(const std::string& name) const {
  const Entry& entry = entries_.at(name);
  std::vector<uint8_t> piece;
  uLong crc = 0;
  for (int64_t at = 0; at < entry.bytes; at += static_cast<int64_t>(piece.size())) {
    piece.resize(static_cast<size_t>(std::min(kPieceBytes, entry.bytes - at)));
    RETURN_IF_ERROR(file_->ReadAt(entry.offset + at, absl::MakeSpan(piece)));
    crc = crc32_z(crc, piece.data(), piece.size());
  }
  return crc == entry.crc ? absl::OkStatus() : Reader(*file_).BadEntry(name, kWrongChecksum);
}

}  // namespace hookline
