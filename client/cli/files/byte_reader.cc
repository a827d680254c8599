#include "client/cli/files/byte_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline::cli {

absl::StatusOr<std::unique_ptr<ByteReader>> ByteReader::Open(const std::string& path) {
  const bool standard_input = path == "-";
  const int fd = standard_input ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  const int stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (stop_fd < 0) {
    const int error = errno;
    if (!standard_input) close(fd);
    return absl::ErrnoToStatus(error, "cannot create an eventfd");
  }
  std::unique_ptr<ByteReader> reader(new ByteReader(standard_input ? "standard input" : path, fd, stop_fd));
  struct stat info;
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", reader->name_));
  if (S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is a directory; give a file of tokens"));
  }
  if (S_ISREG(info.st_mode)) reader->size_ = info.st_size;
  return reader;
}

ByteReader::ByteReader(std::string name, int fd, int stop_fd) : name_(std::move(name)), fd_(fd), stop_fd_(stop_fd) {}

ByteReader::~ByteReader() {
  if (fd_ != STDIN_FILENO) close(fd_);
  close(stop_fd_);
}

absl::StatusOr<size_t> ByteReader::Read(absl::Span<char> bytes) {
  while (true) {
    pollfd events[] = {{stop_fd_, POLLIN, 0}, {fd_, POLLIN, 0}};
    if (poll(events, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot wait for ", name_));
    }
    if (events[0].revents != 0) return absl::CancelledError(absl::StrCat("reading ", name_, " was stopped"));
    const ssize_t got = read(fd_, bytes.data(), bytes.size());
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR && errno != EAGAIN) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", name_));
  }
}

void ByteReader::Stop() { eventfd_write(stop_fd_, 1); }

absl::Status ByteReader::Rewind() {
  if (!size_.has_value() || lseek(fd_, 0, SEEK_SET) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(name_, " cannot be read a second time; give a file to make the capture resumable"));
  }
  eventfd_t count;
  eventfd_read(stop_fd_, &count);
  return absl::OkStatus();
}

}  // namespace hookline::cli
