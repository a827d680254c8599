#include "server/model/torchscript/zip_checksums.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

// APPNOTE.TXT of PKWARE, sections 4.3.12 to 4.3.16. All numbers are little-endian.
constexpr absl::string_view kEndSignature("PK\5\6", 4);
constexpr size_t kEndBytes = 22;
constexpr absl::string_view kEnd64LocatorSignature("PK\6\7", 4);
constexpr size_t kEnd64LocatorBytes = 20;
constexpr absl::string_view kEnd64Signature("PK\6\6", 4);
constexpr size_t kEnd64Bytes = 56;
constexpr absl::string_view kEntrySignature("PK\1\2", 4);
constexpr size_t kEntryBytes = 46;

// A comment may follow the end record.
constexpr size_t kMaxCommentBytes = 65535;

template <typename T>
T Number(absl::string_view bytes, size_t at) {
  T number;
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}

}  // namespace

absl::StatusOr<absl::flat_hash_map<std::string, uint32_t>> ZipChecksums(absl::string_view archive) {
  const size_t searched = archive.size() - std::min(archive.size(), kEndBytes + kMaxCommentBytes);
  const size_t end = archive.rfind(kEndSignature);
  if (end == absl::string_view::npos || end < searched || archive.size() - end < kEndBytes) {
    return absl::FailedPreconditionError("a zip archive without its directory; it is cut off");
  }
  uint64_t size = Number<uint32_t>(archive, end + 12);
  uint64_t offset = Number<uint32_t>(archive, end + 16);
  if (end >= kEnd64LocatorBytes && absl::StartsWith(archive.substr(end - kEnd64LocatorBytes), kEnd64LocatorSignature)) {
    const uint64_t end64 = Number<uint64_t>(archive, end - kEnd64LocatorBytes + 8);
    if (end64 > archive.size() || archive.size() - end64 < kEnd64Bytes ||
        !absl::StartsWith(archive.substr(end64), kEnd64Signature)) {
      return absl::FailedPreconditionError("the zip archive's directory is not where the end says");
    }
    size = Number<uint64_t>(archive, end64 + 40);
    offset = Number<uint64_t>(archive, end64 + 48);
  }
  if (offset > archive.size() || size > archive.size() - offset) {
    return absl::FailedPreconditionError("the zip archive's directory is not where the end says");
  }
  absl::string_view directory = archive.substr(offset, size);
  absl::flat_hash_map<std::string, uint32_t> checksums;
  while (!directory.empty()) {
    if (directory.size() < kEntryBytes || !absl::StartsWith(directory, kEntrySignature)) {
      return absl::FailedPreconditionError("the zip archive's directory is damaged");
    }
    const size_t name_bytes = Number<uint16_t>(directory, 28);
    const size_t entry_bytes =
        kEntryBytes + name_bytes + Number<uint16_t>(directory, 30) + Number<uint16_t>(directory, 32);
    if (entry_bytes > directory.size()) {
      return absl::FailedPreconditionError("the zip archive's directory is damaged");
    }
    absl::string_view name = directory.substr(kEntryBytes, name_bytes);
    name.remove_prefix(std::min(name.size(), name.find('/') + 1));
    if (!checksums.emplace(name, Number<uint32_t>(directory, 16)).second) {
      return absl::FailedPreconditionError(
          absl::StrCat("the zip archive has the entry '", absl::CHexEscape(name.substr(0, 200)), "' twice"));
    }
    directory.remove_prefix(entry_bytes);
  }
  return checksums;
}

}  // namespace hookline
