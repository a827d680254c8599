#include "server/recording/merge_parts.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr char kEveryFolder[] = "*";

// Adds the recording that `open` opens. NOT_FOUND: there is none, or it has no manifest (yet, or any more).
absl::Status Add(std::string label, std::function<absl::StatusOr<std::unique_ptr<Directory>>()> open,
                 MergeParts& found) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Directory> directory, open());
  ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(*directory));
  found.manifests.push_back({label, std::move(manifest)});
  found.parts.push_back({std::move(label), std::move(open)});
  return absl::OkStatus();
}

absl::Status AddFrom(Directory& shared, const std::string& folder, const std::string& name, MergeParts& found) {
  const auto open = [&shared, folder, name]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    ASSIGN_OR_RETURN(const std::unique_ptr<Directory> opened, shared.OpenDirectory(folder));
    return opened->OpenDirectory(name);
  };
  return Add(absl::StrCat(folder, "/", name), open, found);
}

// Adds the recordings of that name in any folder.
absl::Status AddFromAll(Directory& shared, const std::string& name, MergeParts& found) {
  ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> folders, shared.List());
  const size_t before = found.parts.size();
  for (const DirectoryEntry& folder : folders) {
    if (folder.kind != DirectoryEntry::Kind::kDirectory || !CheckRecordingName(folder.name).ok()) continue;
    const absl::Status added = AddFrom(shared, folder.name, name, found);
    if (!absl::IsNotFound(added)) RETURN_IF_ERROR(added);
    if (found.parts.size() > static_cast<size_t>(kMaxParts)) break;  // the caller refuses this many
  }
  return found.parts.size() > before ? absl::OkStatus() : absl::NotFoundError("no folder has one");
}

absl::Status AddNamed(Directory& root, Directory* shared, const std::string& named, MergeParts& found) {
  const std::pair<std::string, std::string> split = absl::StrSplit(named, absl::MaxSplits('/', 1));
  const bool has_folder = named.find('/') != std::string::npos;
  const std::string& name = has_folder ? split.second : split.first;
  const std::string& folder = split.first;
  if (!CheckRecordingName(name).ok() || (has_folder && folder != kEveryFolder && !CheckRecordingName(folder).ok())) {
    return absl::InvalidArgumentError("is not NAME, FOLDER/NAME or */NAME");
  }
  if (!has_folder) {
    return Add(
        name, [&root, name] { return root.OpenDirectory(name); }, found);
  }
  if (shared == nullptr) {
    return absl::InvalidArgumentError(
        "names a folder, and this server shares its directory with no other "
        "(--recordings-folder)");
  }
  return folder == kEveryFolder ? AddFromAll(*shared, name, found) : AddFrom(*shared, folder, name, found);
}

}  // namespace

absl::StatusOr<MergeParts> FindMergeParts(Directory& root, Directory* shared, const std::vector<std::string>& names) {
  if (names.empty()) return InvalidField("parts", "is empty; name the recordings to merge");
  MergeParts found;
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string field = absl::StrCat("parts[", i, "]");
    const absl::Status added = AddNamed(root, shared, names[i], found);
    const std::string shown = Quoted(names[i]);
    if (absl::IsInvalidArgument(added)) return InvalidField(field, absl::StrCat(shown, " ", added.message()));
    if (absl::IsNotFound(added)) {
      return absl::NotFoundError(absl::StrCat(field, ": no recording is called ", shown));
    }
    RETURN_IF_ERROR(added);
    if (found.parts.size() > static_cast<size_t>(kMaxParts)) {
      return InvalidField("parts", absl::StrCat("names more than ", kMaxParts, " recordings"));
    }
  }
  return found;
}

}  // namespace hookline
