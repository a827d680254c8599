// The file-system seam: the operations that recordings need from a disk, as interfaces, so that a test can drop what
// was never synced and make any operation fail.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Directory> root, OpenDirectory("/data/recordings"));
//   ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, root->Create("a.tmp"));
//   RETURN_IF_ERROR(file->WriteAt(0, bytes));
//   RETURN_IF_ERROR(file->Sync());
//   RETURN_IF_ERROR(root->Rename("a.tmp", "a"));
//   RETURN_IF_ERROR(root->Sync());    // only now "a" is sure to be there after a power loss
//
// Files are read with pread and never mapped: if a file is truncated or a disk fails, one read returns an error,
// whereas a mapping would end the process with SIGBUS.
//
// Names are single path components; an empty name, `.`, `..` and a name with a slash are INVALID_ARGUMENT. Links are
// not followed. Errors name the path: RESOURCE_EXHAUSTED if the disk is full, read-only or over quota, NOT_FOUND if
// something is missing.
#ifndef HOOKLINE_SERVER_BASE_FILE_SYSTEM_H_
#define HOOKLINE_SERVER_BASE_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace hookline {

// A file being written. One thread at a time. Destroying it closes it and keeps what was written.
class WritableFile {
 public:
  virtual ~WritableFile() = default;

  // Writes all of `bytes`. After an error, any part of them may have been written.
  virtual absl::Status WriteAt(int64_t offset, absl::Span<const uint8_t> bytes) = 0;

  // Returns once the contents and the length are on the disk.
  virtual absl::Status Sync() = 0;
};

// Facts that show whether a file was changed. Two writes within a tick of the kernel's clock (4 ms) may have
// equal times.
struct FileFacts {
  int64_t bytes = 0;
  absl::Time modified;
  // These distinguish a file from another that took its name; both are 0 where the file system does not report them.
  uint64_t device = 0;
  uint64_t inode = 0;

  bool operator==(const FileFacts& other) const {
    return bytes == other.bytes && modified == other.modified && device == other.device && inode == other.inode;
  }
  bool operator!=(const FileFacts& other) const { return !(*this == other); }
};

// A regular file, open for reading. Thread-safe. It refers to the same file after that is renamed or removed.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;

  // The path is for messages only.
  virtual const std::string& path() const = 0;

  // Returns the facts as they are now. DATA_LOSS: the file system does not report them.
  virtual absl::StatusOr<FileFacts> Facts() const = 0;

  // Fills `out` with the bytes from `offset` on. DATA_LOSS, naming the file and the place: the file ends too early, or
  // the disk fails.
  virtual absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const = 0;
};

struct DirectoryEntry {
  enum class Kind { kFile, kDirectory, kOther };  // links are kOther

  std::string name;
  Kind kind = Kind::kOther;
  int64_t bytes = 0;  // the size of a file
};

// An open directory. Thread-safe; it refers to the same directory after that is renamed.
class Directory {
 public:
  virtual ~Directory() = default;

  // The path is for messages only.
  virtual const std::string& path() const = 0;

  // FAILED_PRECONDITION: not a directory, or a link to one.
  virtual absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(absl::string_view name) = 0;

  // ALREADY_EXISTS: something of that name is there.
  virtual absl::Status MakeDirectory(absl::string_view name) = 0;

  // Creates a file. ALREADY_EXISTS: something of that name is there.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(absl::string_view name) = 0;

  // FAILED_PRECONDITION: not a regular file. Never waits for a pipe's writer.
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(absl::string_view name) = 0;

  // Renames inside this directory; replaces a file that is called `to`.
  virtual absl::Status Rename(absl::string_view from, absl::string_view to) = 0;

  // Links the file `name` of `from`, a directory of the same implementation, as `to` in this directory: both names then
  // refer to the same file. ALREADY_EXISTS: something is called `to`. FAILED_PRECONDITION: the file system does not
  // support or permit this link.
  virtual absl::Status Link(Directory& from, absl::string_view name, absl::string_view to) = 0;

  virtual absl::Status Remove(absl::string_view name) = 0;

  // FAILED_PRECONDITION: not empty.
  virtual absl::Status RemoveDirectory(absl::string_view name) = 0;

  // Lists the entries in order of name.
  virtual absl::StatusOr<std::vector<DirectoryEntry>> List() = 0;

  // Returns once what was created, renamed and removed in this directory is on the disk.
  virtual absl::Status Sync() = 0;

  // Returns how many bytes an unprivileged process can still write to this file system.
  virtual absl::StatusOr<int64_t> FreeBytes() = 0;

  // Locks the directory until this object is destroyed or the process ends. FAILED_PRECONDITION: another process holds
  // a lock.
  virtual absl::Status Lock() = 0;
  // Takes a shared lock, which any number of processes can hold at once; this lock and that of Lock exclude each other.
  virtual absl::Status LockShared() = 0;
};

// Opens the directory at `path` on the machine's disk. Links in `path` itself are followed, because the operator chose
// it. NOT_FOUND, PERMISSION_DENIED or FAILED_PRECONDITION (not a directory).
absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(const std::string& path);

// Opens the regular file at `path`. Links are followed, because the operator chose it. NOT_FOUND, PERMISSION_DENIED or
// FAILED_PRECONDITION (a directory, a pipe, a device), each naming `path`. Never waits for a pipe's writer.
absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path);

// Reads a whole file of at most `max_bytes`; DATA_LOSS if it has more.
absl::StatusOr<std::string> ReadAll(const ReadableFile& file, int64_t max_bytes);

// Returns INVALID_ARGUMENT unless `name` can be one path component. Implementations call it.
absl::Status CheckFileName(absl::string_view name);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_FILE_SYSTEM_H_
