#include "server/recording/merge.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// A link takes about a millisecond on a network file system.
constexpr size_t kLinksAtOnce = 64;

}  // namespace

RecordingMerge::RecordingMerge(std::unique_ptr<Directory> directory, MergePlan plan, std::vector<Part> parts, Host host)
    : directory_(std::move(directory)), plan_(std::move(plan)), parts_(std::move(parts)), host_(std::move(host)) {}

RecordingMerge::RecordingMerge(Manifest manifest)
    : linked_(manifest.shards.size()),
      shard_(manifest.shards.size()),
      checked_bytes_(manifest.bytes()),
      is_published_(true) {
  plan_.manifest = std::move(manifest);
}

RecordingMerge::~RecordingMerge() {
  if (is_published_) return;
  check_.reset();
  directory_.reset();
  host_.abandoned();
}

absl::StatusOr<bool> RecordingMerge::Advance() {
  if (is_published_) return true;
  const size_t shards = plan_.manifest.shards.size();
  if (linked_ < shards) {
    for (size_t i = 0; i < kLinksAtOnce && linked_ < shards; ++i) RETURN_IF_ERROR(LinkShard(linked_++));
    if (linked_ < shards) return false;
    open_part_.reset();
    RETURN_IF_ERROR(directory_->Sync());
    return false;
  }
  if (shard_ < shards) {
    ASSIGN_OR_RETURN(const bool done, CheckShard());
    if (done) checked_bytes_ += plan_.manifest.shards[shard_++].bytes;
    return false;
  }
  RETURN_IF_ERROR(Publish());
  return true;
}

absl::Status RecordingMerge::LinkFrom(const MergePlan::Source& source, const std::string& to) {
  if (open_part_ == nullptr || open_ != source.part) {
    ASSIGN_OR_RETURN(open_part_, parts_[source.part].open());
    open_ = source.part;
  }
  return directory_->Link(*open_part_, source.file, to);
}

absl::Status RecordingMerge::LinkShard(size_t shard) {
  const MergePlan::Source& source = plan_.sources[shard];
  const Part& part = parts_[source.part];
  absl::Status linked = LinkFrom(source, plan_.manifest.shards[shard].file);
  if (absl::IsNotFound(linked)) {
    return absl::AbortedError(
        absl::StrCat("recording ", part.label, " was removed while it was merged: ", linked.message()));
  }
  if (absl::IsFailedPrecondition(linked)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "recording ", part.label, ": a merge links files, which this file system does not allow between recording ",
        part.label, " and ", plan_.manifest.name, " (", linked.message(),
        "); a client can read recordings on several disks as one, as hookline.Recording([...]) does"));
  }
  return linked;
}

absl::StatusOr<bool> RecordingMerge::CheckShard() {
  const ShardInfo& shard = plan_.manifest.shards[shard_];
  const auto check = [&]() -> absl::StatusOr<bool> {
    if (check_ == nullptr) {
      ASSIGN_OR_RETURN(std::shared_ptr<const ReadableFile> file, directory_->OpenFile(shard.file));
      check_ = std::make_unique<ShardCheck>(std::move(file), plan_.manifest, shard);
    }
    return check_->Advance();
  };
  absl::StatusOr<bool> done = check();
  if (!done.ok()) {
    const MergePlan::Source& source = plan_.sources[shard_];
    return absl::DataLossError(absl::StrCat("recording ", parts_[source.part].label, ", shard ", source.file,
                                            ": changed since it was written: ", done.status().message()));
  }
  if (*done) check_.reset();
  return *done;
}

absl::Status RecordingMerge::Publish() {
  plan_.manifest.create_time = plan_.manifest.update_time = absl::Now();
  RETURN_IF_ERROR(WriteManifest(*directory_, plan_.manifest));
  is_published_ = true;
  host_.published(plan_.manifest);
  return absl::OkStatus();
}

}  // namespace hookline
