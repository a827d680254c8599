// Makes one recording from the shards of others. Catalog makes merges:
//
//   ASSIGN_OR_RETURN(std::unique_ptr<RecordingMerge> merge, catalog.Merge("run1", "", {"a/run1", "b/run1"}));
//   while (true) {
//     ASSIGN_OR_RETURN(const bool done, merge->Advance());
//     if (done) break;
//   }
//
// The files are linked, not copied, so that a merge takes no space and the parts can be deleted afterwards. Every byte
// is checked before the manifest is written, and only the manifest makes the files a recording: if the process or the
// machine ends earlier, the next sweep removes them.
#ifndef HOOKLINE_SERVER_RECORDING_MERGE_H_
#define HOOKLINE_SERVER_RECORDING_MERGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"
#include "server/recording/merge_plan.h"
#include "server/recording/shard.h"

namespace hookline {

// One thread at a time.
class RecordingMerge {
 public:
  struct Part {
    std::string label;
    std::function<absl::StatusOr<std::unique_ptr<Directory>>()> open;
  };

  // The catalog's side of a merge.
  struct Host {
    // Called when the manifest is on the disk.
    std::function<void(const Manifest&)> published;
    // Called when the merge ends without a recording, after the directory was closed.
    std::function<void()> abandoned;
  };

  // Merges into `directory`, which is empty. `parts` are those of the plan.
  RecordingMerge(std::unique_ptr<Directory> directory, MergePlan plan, std::vector<Part> parts, Host host);
  // Represents a merge that was done before: `manifest` is that of the recording.
  explicit RecordingMerge(Manifest manifest);
  // Removes what was made so far, unless the recording is complete.
  ~RecordingMerge();
  RecordingMerge(const RecordingMerge&) = delete;
  RecordingMerge& operator=(const RecordingMerge&) = delete;

  const Manifest& manifest() const { return plan_.manifest; }

  // Does a part of the work: links files, or reads a slice. Returns true when the recording is complete. DATA_LOSS,
  // naming part and shard: a file has changed since it was written. ABORTED: a part was removed meanwhile.
  // FAILED_PRECONDITION: a part is on another file system, or its files cannot be linked. RESOURCE_EXHAUSTED: the disk
  // is full. Do not call it again after any of these.
  absl::StatusOr<bool> Advance();

  // Return how much was compared with its checksum so far.
  int64_t checked_shards() const { return static_cast<int64_t>(shard_); }
  int64_t checked_bytes() const { return checked_bytes_; }

 private:
  absl::Status LinkShard(size_t shard);
  absl::Status LinkFrom(const MergePlan::Source& source, const std::string& to);
  absl::StatusOr<bool> CheckShard();
  absl::Status Publish();

  std::unique_ptr<Directory> directory_;
  MergePlan plan_;
  const std::vector<Part> parts_;
  const Host host_;
  std::unique_ptr<Directory> open_part_;  // the part `open_`, whose shards are being linked
  size_t open_ = 0;
  size_t linked_ = 0;  // the number of linked shards
  size_t shard_ = 0;   // the shard that is being checked
  int64_t checked_bytes_ = 0;
  std::unique_ptr<ShardCheck> check_;  // the check of `shard_`
  bool is_published_ = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_MERGE_H_
