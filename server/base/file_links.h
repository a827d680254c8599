// What processes that share a directory need beside a Directory of their own: further names for each other's files, and
// a lock that they hold together. Every Directory of file_system.h offers it.
//
//   RETURN_IF_ERROR(LockShared(*shared));
//   RETURN_IF_ERROR(LinkFile(*theirs, "rows", *mine, "rows"));
#ifndef HOOKLINE_SERVER_BASE_FILE_LINKS_H_
#define HOOKLINE_SERVER_BASE_FILE_LINKS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/base/file_system.h"

namespace hookline {

// Implementations of Directory implement this too.
class FileLinks {
 public:
  virtual ~FileLinks() = default;

  // As LinkFile, into this directory; `from` is of the same implementation.
  virtual absl::Status Link(Directory& from, absl::string_view name, absl::string_view to) = 0;
  virtual absl::Status LockShared() = 0;
};

// Gives the file `name` of `from` the further name `to` in `directory`: both then name the same file. ALREADY_EXISTS:
// something is called `to`. NOT_FOUND: nothing is called `name`. FAILED_PRECONDITION: the file system cannot, or may
// not, give a file of `from` another name there.
absl::Status LinkFile(Directory& from, absl::string_view name, Directory& directory, absl::string_view to);

// Locks a directory for any number of processes that share it: only a Directory::Lock excludes it, and is excluded by
// it. Held until `directory` is destroyed or the process ends. FAILED_PRECONDITION: another process holds Lock.
absl::Status LockShared(Directory& directory);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_FILE_LINKS_H_
