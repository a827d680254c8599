// The file-system seam: what recordings need of a disk, so that a test can take away what was never synced and fail any
// operation.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Directory> root, OpenDirectory("/data/recordings"));
//   ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, root->Create("a.tmp"));
//   RETURN_IF_ERROR(file->WriteAt(0, bytes));
//   RETURN_IF_ERROR(file->Sync());
//   RETURN_IF_ERROR(root->Rename("a.tmp", "a"));
//   RETURN_IF_ERROR(root->Sync());    // only now "a" is sure to be there after a power loss
//
// Names are single path components; one with a slash, `.`, `..` or nothing is INVALID_ARGUMENT. No link is followed.
// Errors name the path. What a disk that is full, read-only or over quota refuses is RESOURCE_EXHAUSTED; what is not
// there, NOT_FOUND.
#ifndef HOOKLINE_SERVER_BASE_FILE_SYSTEM_H_
#define HOOKLINE_SERVER_BASE_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline {

// A file being written. One thread at a time. Destroying it closes it and keeps what was written.
class WritableFile {
 public:
  virtual ~WritableFile() = default;

  // All of `bytes` or an error; after an error any part of them may have been written.
  virtual absl::Status WriteAt(int64_t offset, absl::Span<const uint8_t> bytes) = 0;

  // Returns once the contents and the length are on the disk.
  virtual absl::Status Sync() = 0;
};

// A file's contents for reading, as they were when it was mapped. `owner` keeps `bytes` alive, also when the file is
// removed.
struct FileView {
  std::shared_ptr<const void> owner;
  absl::Span<const uint8_t> bytes;
};

struct DirectoryEntry {
  enum class Kind { kFile, kDirectory, kOther };  // links are kOther

  std::string name;
  Kind kind = Kind::kOther;
  int64_t bytes = 0;  // of a file
};

// An open directory. Thread-safe; it goes on meaning the same directory when that is renamed.
class Directory {
 public:
  virtual ~Directory() = default;

  // For messages only.
  virtual const std::string& path() const = 0;

  // FAILED_PRECONDITION: not a directory, or a link to one.
  virtual absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(absl::string_view name) = 0;

  // ALREADY_EXISTS: something of that name is there.
  virtual absl::Status MakeDirectory(absl::string_view name) = 0;

  // A new file. ALREADY_EXISTS: something of that name is there.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(absl::string_view name) = 0;

  // The whole of a regular file. An empty one is an empty view.
  virtual absl::StatusOr<FileView> Map(absl::string_view name) = 0;

  // Inside this directory; replaces a file that is called `to`.
  virtual absl::Status Rename(absl::string_view from, absl::string_view to) = 0;

  virtual absl::Status Remove(absl::string_view name) = 0;

  // FAILED_PRECONDITION: not empty.
  virtual absl::Status RemoveDirectory(absl::string_view name) = 0;

  // In order of name.
  virtual absl::StatusOr<std::vector<DirectoryEntry>> List() = 0;

  // Returns once what was created, renamed and removed in this directory is on the disk.
  virtual absl::Status Sync() = 0;

  // What an unprivileged process may still write to this file system.
  virtual absl::StatusOr<int64_t> FreeBytes() = 0;

  // Held until this object is destroyed or the process ends. FAILED_PRECONDITION: another process holds it.
  virtual absl::Status Lock() = 0;
};

// The directory at `path` on the machine's disk; links in `path` itself are followed, for the operator chose it.
// NOT_FOUND, PERMISSION_DENIED or FAILED_PRECONDITION (not a directory).
absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(const std::string& path);

// Whether `name` can be one path component. For implementations.
absl::Status CheckFileName(absl::string_view name);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_FILE_SYSTEM_H_
