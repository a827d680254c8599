#include "server/base/input_file.h"

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::StatusOr<std::shared_ptr<const InputFile>> InputFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<const ReadableFile> file, OpenFile(path));
  ASSIGN_OR_RETURN(const FileFacts facts, file->Facts());
  if (facts.bytes == 0) return absl::FailedPreconditionError(absl::StrCat(path, ": the file is empty"));
  return std::shared_ptr<const InputFile>(new InputFile(std::move(file), facts));
}

absl::Status InputFile::ReadAt(int64_t offset, absl::Span<uint8_t> out) const {
  absl::Status status = file_->ReadAt(offset, out);
  if (status.ok()) return status;
  const absl::StatusOr<FileFacts> now = file_->Facts();
  if (!now.ok() || now->bytes >= size()) return status;
  return absl::FailedPreconditionError(absl::StrCat(status.message(), "; it had ", size(),
                                                    " bytes when it was opened, so another program has cut it short"));
}

absl::Status InputFile::CheckUnchanged() const {
  const auto changed = [&](absl::string_view how) {
    return absl::FailedPreconditionError(
        absl::StrCat(path(), ": ", how, " while it was read; load it again when nothing writes to it"));
  };
  ASSIGN_OR_RETURN(const FileFacts now, file_->Facts());
  if (now.bytes != facts_.bytes) return changed(absl::StrCat("went from ", facts_.bytes, " to ", now.bytes, " bytes"));
  if (now != facts_) return changed("was written to");
  const absl::StatusOr<std::unique_ptr<ReadableFile>> named = OpenFile(path());
  if (!named.ok()) return changed("was replaced or removed");
  const absl::StatusOr<FileFacts> facts = (*named)->Facts();
  if (!facts.ok() || *facts != facts_) return changed("was replaced or removed");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> file, InputFile::Open(path));
  if (file->size() > max_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": has ", file->size(), " bytes; at most ", max_bytes, " are read"));
  }
  std::string text(static_cast<size_t>(file->size()), '\0');
  RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size())));
  return text;
}

}  // namespace hookline
