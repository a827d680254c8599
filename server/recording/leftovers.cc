#include "server/recording/leftovers.h"

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/recording/shard.h"

namespace hookline {

void RemoveLeftovers(Directory& directory, std::initializer_list<const Manifest*> manifests) {
  std::set<std::string> named;
  for (const Manifest* manifest : manifests) {
    for (const ShardInfo& shard : manifest->shards) named.insert(shard.file);
  }
  const auto entries = directory.List();
  if (!entries.ok()) return;
  for (const DirectoryEntry& entry : *entries) {
    if (entry.kind == DirectoryEntry::Kind::kFile && IsLeftover(entry.name) && named.count(entry.name) == 0) {
      directory.Remove(entry.name).IgnoreError();
    }
  }
}

absl::Status CheckLengths(Directory& directory, const Manifest& manifest) {
  ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> entries, directory.List());
  std::map<std::string, int64_t> lengths;
  for (const DirectoryEntry& entry : entries) {
    if (entry.kind == DirectoryEntry::Kind::kFile) lengths[entry.name] = entry.bytes;
  }
  for (const ShardInfo& shard : manifest.shards) {
    const auto found = lengths.find(shard.file);
    if (found == lengths.end()) return absl::DataLossError(absl::StrCat(shard.file, ": is missing"));
    if (found->second != shard.bytes) {
      return absl::DataLossError(
          absl::StrCat(shard.file, ": has ", found->second, " bytes; the manifest says ", shard.bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLastShard(Directory& directory, const Manifest& manifest) {
  RETURN_IF_ERROR(CheckLengths(directory, manifest));
  if (manifest.shards.empty()) return absl::OkStatus();
  const ShardInfo& last = manifest.shards.back();
  ASSIGN_OR_RETURN(std::shared_ptr<const ReadableFile> file, directory.OpenFile(last.file));
  ShardCheck check(std::move(file), manifest, last);
  absl::StatusOr<bool> done = false;
  while (done.ok() && !*done) done = check.Advance();
  if (done.ok()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(last.file, ": changed since it was written: ", done.status().message()));
}

}  // namespace hookline
