#include "server/model/load/checkpoint_file.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// Every pointer begins with this (git-lfs's docs/spec.md).
constexpr absl::string_view kPointer = "version https://git-lfs.github.com/spec/";

absl::Status IsPointer(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(
      path, ": is a Git LFS pointer and not the file that it stands for; run `git lfs pull` in its folder"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const InputFile>> OpenCheckpointFile(const std::string& path) {
  ASSIGN_OR_RETURN(std::shared_ptr<const InputFile> file, InputFile::Open(path));
  if (file->size() < static_cast<int64_t>(kPointer.size())) return file;
  uint8_t begin[kPointer.size()];
  RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(begin)));
  if (absl::string_view(reinterpret_cast<const char*>(begin), kPointer.size()) == kPointer) return IsPointer(path);
  return file;
}

absl::StatusOr<std::string> ReadCheckpointText(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(std::string text, ReadWholeFile(path, max_bytes));
  if (absl::StartsWith(text, kPointer)) return IsPointer(path);
  return text;
}

}  // namespace hookline
