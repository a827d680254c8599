#include "server/base/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr int64_t kPageBytes = 4096;
// A disk writes pieces of this size as fast as larger ones; smaller ones are better gathered first.
constexpr int64_t kEarlyWriteBytes = 256 << 10;

absl::Status ErrorOf(int error, absl::string_view what) {
  switch (error) {
    case ENOTDIR:
    case ELOOP:
    case ENOTEMPTY:
    case EISDIR:
      return absl::FailedPreconditionError(absl::StrCat(what, ": ", strerror(error)));
    default:
      return absl::ErrnoToStatus(error, what);
  }
}

// Converts the errno of an operation that changes the disk: a disk that cannot be written to counts as full, whatever
// the reason.
absl::Status WriteErrorOf(int error, absl::string_view what) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EROFS:
    case EACCES:
    case EPERM:
      return absl::ResourceExhaustedError(absl::StrCat(what, ": ", strerror(error)));
    default:
      return ErrorOf(error, what);
  }
}

class PosixFile final : public WritableFile {
 public:
  PosixFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixFile() override { close(fd_); }

  absl::Status WriteAt(int64_t offset, absl::Span<const uint8_t> bytes) override {
    const int64_t begin = offset;
    while (!bytes.empty()) {
      const ssize_t written = pwrite(fd_, bytes.data(), bytes.size(), offset);
      if (written < 0) {
        if (errno == EINTR) continue;
        return WriteErrorOf(errno, absl::StrCat(path_, ": writing ", bytes.size(), " bytes at ", offset));
      }
      offset += written;
      bytes.remove_prefix(written);
    }
    // Starts writing whole pages to the disk now, so that Sync has little to wait for. Sync reports their errors.
    const int64_t first_page = (begin + kPageBytes - 1) / kPageBytes * kPageBytes;
    const int64_t whole_bytes = offset / kPageBytes * kPageBytes - first_page;
    if (whole_bytes >= kEarlyWriteBytes) sync_file_range(fd_, first_page, whole_bytes, SYNC_FILE_RANGE_WRITE);
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    if (fdatasync(fd_) != 0) return WriteErrorOf(errno, absl::StrCat(path_, ": fdatasync"));
    return absl::OkStatus();
  }

 private:
  const int fd_;
  const std::string path_;
};

class PosixReadableFile final : public ReadableFile {
 public:
  PosixReadableFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixReadableFile() override { close(fd_); }

  const std::string& path() const override { return path_; }

  absl::StatusOr<FileFacts> Facts() const override {
    struct stat facts;
    if (fstat(fd_, &facts) != 0) return absl::DataLossError(absl::StrCat(path_, ": fstat: ", strerror(errno)));
    return FileFacts{facts.st_size, absl::TimeFromTimespec(facts.st_mtim), facts.st_dev, facts.st_ino};
  }

  absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const override {
    while (!out.empty()) {
      const ssize_t got = pread(fd_, out.data(), out.size(), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        return absl::DataLossError(absl::StrCat(path_, ": reading ", out.size(), " bytes at ", offset, ": ",
                                                got == 0 ? "the file ends before" : strerror(errno)));
      }
      offset += got;
      out.remove_prefix(got);
    }
    return absl::OkStatus();
  }

 private:
  const int fd_;
  const std::string path_;
};

// `directory` and `name` are openat's.
absl::StatusOr<std::unique_ptr<ReadableFile>> OpenRegular(int directory, const char* name, int flags,
                                                          const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = openat(directory, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags);
  if (fd < 0) return ErrorOf(errno, path);
  auto file = std::make_unique<PosixReadableFile>(fd, path);
  struct stat facts;
  if (fstat(fd, &facts) != 0) return ErrorOf(errno, path);
  if (!S_ISREG(facts.st_mode)) return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  return file;
}

class PosixDirectory final : public Directory {
 public:
  PosixDirectory(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixDirectory() override { close(fd_); }

  const std::string& path() const override { return path_; }

  absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(absl::string_view name) override {
    RETURN_IF_ERROR(CheckFileName(name));
    const int fd = openat(fd_, std::string(name).c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return ErrorOf(errno, PathOf(name));
    return std::make_unique<PosixDirectory>(fd, PathOf(name));
  }

  absl::Status MakeDirectory(absl::string_view name) override {
    RETURN_IF_ERROR(CheckFileName(name));
    if (mkdirat(fd_, std::string(name).c_str(), 0777) != 0) return WriteErrorOf(errno, PathOf(name));
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(absl::string_view name) override {
    RETURN_IF_ERROR(CheckFileName(name));
    const int fd = openat(fd_, std::string(name).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) return WriteErrorOf(errno, PathOf(name));
    return std::make_unique<PosixFile>(fd, PathOf(name));
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(absl::string_view name) override {
    RETURN_IF_ERROR(CheckFileName(name));
    return OpenRegular(fd_, std::string(name).c_str(), O_NOFOLLOW, PathOf(name));
  }

  absl::Status Rename(absl::string_view from, absl::string_view to) override {
    RETURN_IF_ERROR(CheckFileName(from));
    RETURN_IF_ERROR(CheckFileName(to));
    if (renameat(fd_, std::string(from).c_str(), fd_, std::string(to).c_str()) != 0) {
      return WriteErrorOf(errno, absl::StrCat(PathOf(from), ": renaming to ", to));
    }
    return absl::OkStatus();
  }

  absl::Status Link(Directory& from, absl::string_view name, absl::string_view to) override {
    RETURN_IF_ERROR(CheckFileName(name));
    RETURN_IF_ERROR(CheckFileName(to));
    auto* const directory = dynamic_cast<PosixDirectory*>(&from);
    if (directory == nullptr) return absl::FailedPreconditionError(absl::StrCat(path_, ": not on the disk of a link"));
    if (linkat(directory->fd_, std::string(name).c_str(), fd_, std::string(to).c_str(), 0) == 0) {
      return absl::OkStatus();
    }
    const std::string what = absl::StrCat(directory->PathOf(name), ": linking to ", PathOf(to));
    if (errno == EXDEV || errno == EPERM || errno == EMLINK || errno == EOPNOTSUPP) {
      return absl::FailedPreconditionError(absl::StrCat(what, ": ", strerror(errno)));
    }
    return WriteErrorOf(errno, what);
  }

  absl::Status Remove(absl::string_view name) override { return Unlink(name, 0); }
  absl::Status RemoveDirectory(absl::string_view name) override { return Unlink(name, AT_REMOVEDIR); }

  absl::StatusOr<std::vector<DirectoryEntry>> List() override {
    // The listing needs a descriptor of its own, because readdir moves the position.
    const int fd = openat(fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return ErrorOf(errno, path_);
    DIR* stream = fdopendir(fd);
    if (stream == nullptr) {
      const int error = errno;
      close(fd);
      return ErrorOf(error, path_);
    }
    absl::Cleanup close_stream = [stream] { closedir(stream); };
    std::vector<DirectoryEntry> entries;
    while (true) {
      errno = 0;
      const dirent* found = readdir(stream);
      if (found == nullptr) {
        if (errno != 0) return ErrorOf(errno, path_);
        break;
      }
      const std::string name = found->d_name;
      if (name == "." || name == "..") continue;
      struct stat facts;
      if (fstatat(fd_, name.c_str(), &facts, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) continue;  // removed meanwhile
        return ErrorOf(errno, PathOf(name));
      }
      DirectoryEntry entry;
      entry.name = name;
      if (S_ISREG(facts.st_mode)) {
        entry.kind = DirectoryEntry::Kind::kFile;
        entry.bytes = facts.st_size;
      } else if (S_ISDIR(facts.st_mode)) {
        entry.kind = DirectoryEntry::Kind::kDirectory;
      }
      entries.push_back(std::move(entry));
    }
    std::sort(entries.begin(), entries.end(),
              [](const DirectoryEntry& a, const DirectoryEntry& b) { return a.name < b.name; });
    return entries;
  }

  absl::Status Sync() override {
    if (fsync(fd_) != 0) return WriteErrorOf(errno, absl::StrCat(path_, ": fsync"));
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> FreeBytes() override {
    struct statvfs facts;
    if (fstatvfs(fd_, &facts) != 0) return ErrorOf(errno, path_);
    return static_cast<int64_t>(facts.f_bavail) * static_cast<int64_t>(facts.f_frsize);
  }

  absl::Status Lock() override { return LockFor(LOCK_EX); }
  absl::Status LockShared() override { return LockFor(LOCK_SH); }

 private:
  absl::Status LockFor(int kind) {
    if (flock(fd_, kind | LOCK_NB) == 0) return absl::OkStatus();
    if (errno == EWOULDBLOCK) {
      return absl::FailedPreconditionError(absl::StrCat(path_, ": in use by another process"));
    }
    return ErrorOf(errno, absl::StrCat(path_, ": flock"));
  }

  std::string PathOf(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

  absl::Status Unlink(absl::string_view name, int flags) {
    RETURN_IF_ERROR(CheckFileName(name));
    if (unlinkat(fd_, std::string(name).c_str(), flags) != 0) return WriteErrorOf(errno, PathOf(name));
    return absl::OkStatus();
  }

  const int fd_;
  const std::string path_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrorOf(errno, path);
  return std::make_unique<PosixDirectory>(fd, path);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path) {
  return OpenRegular(AT_FDCWD, path.c_str(), 0, path);
}

absl::StatusOr<std::string> ReadAll(const ReadableFile& file, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const FileFacts facts, file.Facts());
  if (facts.bytes > max_bytes) {
    return absl::DataLossError(
        absl::StrCat(file.path(), ": ", facts.bytes, " bytes; at most ", max_bytes, " belong there"));
  }
  std::string bytes(facts.bytes, '\0');
  RETURN_IF_ERROR(file.ReadAt(0, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}));
  return bytes;
}

absl::Status CheckFileName(absl::string_view name) {
  if (name.empty() || name == "." || name == ".." || name.size() > NAME_MAX ||
      name.find_first_of(absl::string_view("/\0", 2)) != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a file name (1 to ", NAME_MAX, " bytes without a slash): \"", name.substr(0, 64), "\""));
  }
  return absl::OkStatus();
}

}  // namespace hookline
