#include "server/base/input_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::StatusOr<std::shared_ptr<const InputFile>> InputFile::Open(const std::string& path) {
  // A pipe without a writer would otherwise keep its reader here.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, path);
  absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat facts;
  if (fstat(fd, &facts) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(facts.st_mode)) return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  if (facts.st_size == 0) return absl::FailedPreconditionError(absl::StrCat(path, ": the file is empty"));
  std::move(close_fd).Cancel();
  return std::shared_ptr<const InputFile>(new InputFile(path, fd, facts));
}

InputFile::~InputFile() { close(fd_); }

absl::Status InputFile::ReadAt(int64_t offset, absl::Span<uint8_t> out) const {
  while (!out.empty()) {
    const ssize_t count = pread(fd_, out.data(), out.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": cannot be read at byte ", offset));
    if (count == 0) {
      return absl::FailedPreconditionError(absl::StrCat(path_, ": ends at byte ", offset, ", where ", out.size(),
                                                        " more are wanted; it had ", size(),
                                                        " when it was opened, so another program has cut it short"));
    }
    out.remove_prefix(static_cast<size_t>(count));
    offset += count;
  }
  return absl::OkStatus();
}

absl::Status InputFile::CheckUnchanged() const {
  const auto changed = [&](absl::string_view how) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": ", how, " while it was read; load it again when nothing writes to it"));
  };
  struct stat now;
  if (fstat(fd_, &now) != 0) return absl::ErrnoToStatus(errno, path_);
  if (now.st_size != facts_.st_size) {
    return changed(absl::StrCat("went from ", facts_.st_size, " to ", now.st_size, " bytes"));
  }
  if (now.st_mtim.tv_sec != facts_.st_mtim.tv_sec || now.st_mtim.tv_nsec != facts_.st_mtim.tv_nsec) {
    return changed("was written to");
  }
  if (stat(path_.c_str(), &now) != 0 || now.st_dev != facts_.st_dev || now.st_ino != facts_.st_ino) {
    return changed("was replaced or removed");
  }
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
