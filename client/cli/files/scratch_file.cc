#include "client/cli/files/scratch_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

absl::Status DiskError(absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

}  // namespace

std::string TemporaryPath(absl::string_view directory, absl::string_view name) {
  return absl::StrCat(directory, "/.", name, ".", getpid(), ".partial");
}

absl::StatusOr<std::unique_ptr<ScratchFile>> ScratchFile::Create(std::string path) {
  const std::string directory = path.substr(0, path.rfind('/') + 1);
  int fd = open(directory.empty() ? "." : directory.c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, 0666);
  // Not every file system supports unnamed files. Any other error comes again at the second attempt.
  const bool has_name = fd < 0;
  if (has_name) fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return DiskError("create", path);
  return std::unique_ptr<ScratchFile>(new ScratchFile(std::move(path), fd, has_name));
}

ScratchFile::~ScratchFile() {
  if (has_name_ && !kept_) unlink(path_.c_str());
  close(fd_);
}

absl::Status ScratchFile::Append(absl::Span<const absl::Span<const uint8_t>> pieces) {
  std::array<iovec, 64> vector;  // a chunk has few pieces; more take several calls
  size_t piece = 0;
  size_t offset = 0;  // into pieces[piece]
  while (piece < pieces.size()) {
    size_t count = 0;
    for (size_t i = piece; i < pieces.size() && count < vector.size(); ++i) {
      const size_t skip = i == piece ? offset : 0;
      vector[count++] = {const_cast<uint8_t*>(pieces[i].data()) + skip, pieces[i].size() - skip};
    }
    ssize_t written = writev(fd_, vector.data(), static_cast<int>(count));
    if (written < 0) {
      if (errno == EINTR) continue;
      return DiskError("write", path_);
    }
    bytes_ += written;
    offset += static_cast<size_t>(written);
    while (piece < pieces.size() && offset >= pieces[piece].size()) offset -= pieces[piece++].size();
  }
  return absl::OkStatus();
}

absl::Status ScratchFile::Append(const void* data, int64_t bytes) {
  const absl::Span<const uint8_t> piece(static_cast<const uint8_t*>(data), static_cast<size_t>(bytes));
  return Append(absl::MakeConstSpan(&piece, 1));
}

absl::Status ScratchFile::AppendFrom(const ScratchFile& other, int64_t bytes) {
  std::vector<uint8_t> buffer(static_cast<size_t>(std::min<int64_t>(bytes, int64_t{1} << 20)));
  for (int64_t done = 0; done < bytes;) {
    const auto wanted = std::min<size_t>(buffer.size(), static_cast<size_t>(bytes - done));
    const ssize_t got = pread(other.fd_, buffer.data(), wanted, done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return DiskError("read", other.path_);
    if (got == 0) return absl::DataLossError(absl::StrCat(other.path_, " was truncated by another program"));
    RETURN_IF_ERROR(Append(buffer.data(), got));
    done += got;
  }
  return absl::OkStatus();
}

absl::Status ScratchFile::Overwrite(absl::string_view begin) {
  for (size_t done = 0; done < begin.size();) {
    const ssize_t written = pwrite(fd_, begin.data() + done, begin.size() - done, static_cast<off_t>(done));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return DiskError("write", path_);
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::Status ScratchFile::Sync() {
  if (fsync(fd_) != 0) return DiskError("sync", path_);
  return absl::OkStatus();
}

absl::Status ScratchFile::Keep(const std::string& path) {
  if (!has_name_) {
    // linkat does not replace a file, so the file gets its temporary name first.
    const std::string itself = absl::StrCat("/proc/self/fd/", fd_);
    if (linkat(AT_FDCWD, itself.c_str(), AT_FDCWD, path_.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      return DiskError("create", path_);
    }
    has_name_ = true;
  }
  if (rename(path_.c_str(), path.c_str()) != 0) return DiskError("rename a file to", path);
  path_ = path;
  kept_ = true;
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& directory) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return DiskError("open", directory);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? absl::OkStatus() : absl::ErrnoToStatus(error, absl::StrCat("cannot sync ", directory));
}

}  // namespace hookline::cli
