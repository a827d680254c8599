#include "server/base/file_links.h"

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

absl::Status NotOffered(const Directory& directory) {
  return absl::FailedPreconditionError(absl::StrCat(directory.path(), ": files cannot be linked there"));
}

}  // namespace

absl::Status LinkFile(Directory& from, absl::string_view name, Directory& directory, absl::string_view to) {
  auto* const links = dynamic_cast<FileLinks*>(&directory);
  return links == nullptr ? NotOffered(directory) : links->Link(from, name, to);
}

absl::Status LockShared(Directory& directory) {
  auto* const links = dynamic_cast<FileLinks*>(&directory);
  return links == nullptr ? NotOffered(directory) : links->LockShared();
}

}  // namespace hookline
