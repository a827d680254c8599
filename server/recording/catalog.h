// All recordings of a server, in one directory.
//
//   ASSIGN_OR_RETURN(auto directory, OpenDirectory("/data/recordings"));
//   ASSIGN_OR_RETURN(auto catalog, Catalog::Open(std::move(directory), options));
//   ASSIGN_OR_RETURN(auto writer, catalog->Create(manifest));
#ifndef HOOKLINE_SERVER_RECORDING_CATALOG_H_
#define HOOKLINE_SERVER_RECORDING_CATALOG_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"
#include "server/recording/merge.h"
#include "server/recording/reader.h"
#include "server/recording/shard_files.h"
#include "server/recording/writer.h"

namespace hookline {

struct CatalogOptions {
  int64_t quota_bytes = 0;                   // of all files together; 0: no limit
  int64_t free_bytes = int64_t{1} << 30;     // what recordings leave free on the file system
  int64_t shard_bytes = int64_t{256} << 20;  // about; a shard has at least one row
  int64_t read_bytes = int64_t{512} << 20;   // of memory, for the messages of all reads together
};

// The place that a recording is cut back to, to be continued from there.
struct ResumePoint {
  int64_t row = 0;
  std::string token;
};

// The figures that an operator watches: how many recordings there are in each state, and the room that they have.
struct CatalogUsage {
  std::map<RecordingState, int64_t> recordings;  // every state, also one that none has
  int64_t unreadable = 0;                        // whose manifest cannot be read
  int64_t used_bytes = 0;                        // as used_bytes() says
  int64_t quota_bytes = 0;                       // 0: no limit
  std::optional<int64_t> free_bytes;             // of the file system; absent: it does not say
  int64_t kept_free_bytes = 0;                   // below this much, nothing more is written
};

// Thread-safe. It must outlive its writers and merges; readers may outlive it.
class Catalog {
 public:
  // Opens the directory `folder` of `shared`, which it makes where it is missing, for the recordings of one of several
  // servers that share the directory. Merge then takes recordings of all folders. Errors as Open's; INVALID_ARGUMENT:
  // `folder` is not a recording's name.
  static absl::StatusOr<std::unique_ptr<Catalog>> OpenShared(std::unique_ptr<Directory> shared,
                                                             const std::string& folder, const CatalogOptions& options);

  // Locks the directory and sweeps it: leftovers are removed, a recording that was RUNNING becomes INTERRUPTED, and one
  // whose shards are missing or of another length becomes FAILED. Other files are left alone. FAILED_PRECONDITION:
  // another process has the directory. Recordings on a read-only disk can still be read.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(std::unique_ptr<Directory> root, const CatalogOptions& options);

  Catalog(const Catalog&) = delete;
  Catalog& operator=(const Catalog&) = delete;

  // Returns what Open found and an operator should look at, one line each.
  const std::vector<std::string>& notes() const { return notes_; }

  // Creates a recording. The caller fills in the part of `manifest` that the request determines: name, model,
  // fingerprint, request_digest, deterministic, dtype, hook_points, source, selection and resume_token (of the
  // capture's beginning). INVALID_ARGUMENT: the name; a hook point's name that FORMAT.md keeps for itself.
  // ALREADY_EXISTS; ABORTED: a recording of that name is being removed. RESOURCE_EXHAUSTED: disk or quota.
  absl::StatusOr<std::unique_ptr<RecordingWriter>> Create(Manifest manifest);

  // Continues a recording that is not being written, after its last row or, cut back first, after `resume`. NOT_FOUND;
  // FAILED_PRECONDITION: it is being written or removed, or it has fewer rows than `resume`; DATA_LOSS: its last shard
  // is not as it was written, or its directory is gone; RESOURCE_EXHAUSTED.
  absl::StatusOr<std::unique_ptr<RecordingWriter>> Continue(absl::string_view name,
                                                            std::optional<ResumePoint> resume = std::nullopt);

  // Begins to merge complete recordings into a new one of that name. A part is a recording of this catalog, by its
  // name, or of a folder of the shared directory (OpenShared): `FOLDER/NAME`, or `*/NAME` for all folders that have
  // one. Where a merge of the same parts is there already, nothing is left to do. INVALID_ARGUMENT: a name, or no
  // shared directory; NOT_FOUND: a part; ALREADY_EXISTS: another recording has the name; RESOURCE_EXHAUSTED: disk or
  // quota; FAILED_PRECONDITION: as PlanMerge.
  absl::StatusOr<std::unique_ptr<RecordingMerge>> Merge(const std::string& name, const std::string& client,
                                                        const std::vector<std::string>& parts);

  // INVALID_ARGUMENT: not a name; NOT_FOUND, also while it is being removed; DATA_LOSS: its manifest cannot be read.
  absl::StatusOr<std::shared_ptr<const Manifest>> Get(absl::string_view name) const;

  // Up to `count` manifests in order of name, of names after `after`. Those that cannot be read are left out.
  std::vector<std::shared_ptr<const Manifest>> List(absl::string_view after, int64_t count) const;

  // Opens a reader of the shards that are finished now. Errors as Get; DATA_LOSS also if its directory was removed.
  absl::StatusOr<std::shared_ptr<const RecordingReader>> OpenReader(absl::string_view name) const;

  // Removes a recording, even if its directory is gone already, and returns the bytes of its shards.
  // FAILED_PRECONDITION: it is being written, or its directory holds other files, which then are all that remains.
  absl::StatusOr<int64_t> Delete(absl::string_view name);

  // Returns the bytes of all files, those being written included. Every recording takes some, also one without rows.
  int64_t used_bytes() const;

  CatalogUsage Usage() const;

 private:
  struct Entry {
    std::shared_ptr<const Manifest> manifest;  // null: damage says why
    absl::Status damage;
    std::shared_ptr<RecordingFiles> files;
    bool is_busy = false;           // has a writer, or is being removed
    bool is_being_made = false;     // has no directory yet
    bool is_being_removed = false;  // treated as gone, except that its name is taken
    int64_t used_bytes = 0;         // of the manifest, its directory, and the shards that it names
    int64_t charged_bytes = 0;      // by its writer, beyond used_bytes
  };

  Catalog(std::unique_ptr<Directory> root, const CatalogOptions& options)
      : root_(std::move(root)),
        options_(options),
        open_files_(std::make_shared<ShardFileCache>()),
        read_memory_(std::make_shared<ReadMemory>(options.read_bytes)) {}

  // Makes the directory of an entry that is being made. ALREADY_EXISTS; RESOURCE_EXHAUSTED.
  absl::StatusOr<std::unique_ptr<Directory>> MakeRecording(const std::string& name);
  // Removes what there is of it.
  void Unmake(const std::string& name);
  void Forget(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes the name of a merge. Returns the recording where it is there already, null where the merge may begin.
  absl::StatusOr<std::shared_ptr<const Manifest>> Reserve(const Manifest& merged) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Sweep();
  void SweepRecording(const std::string& name);
  std::unique_ptr<RecordingWriter> MakeWriter(std::unique_ptr<Directory> directory, Manifest manifest);
  absl::StatusOr<Manifest> CutBack(Directory& directory, const Manifest& manifest, const ResumePoint& resume);
  // `linked_bytes` count towards the quota, but take no room on the disk.
  absl::Status Charge(const std::string& name, int64_t bytes, int64_t linked_bytes = 0) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t UsedBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sets the manifest of the recording, for readers too.
  void SetManifest(Entry& entry, Manifest manifest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // DATA_LOSS: the directory is gone.
  absl::StatusOr<std::unique_ptr<Directory>> OpenRecording(absl::string_view name) const;
  // Removes the recording's files and then its directory.
  absl::Status RemoveFiles(absl::string_view name);
  absl::StatusOr<Entry*> Find(absl::string_view name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<Directory> root_;
  std::unique_ptr<Directory> shared_;  // null: the catalog has a directory of its own
  const CatalogOptions options_;
  const std::shared_ptr<ShardFileCache> open_files_;
  const std::shared_ptr<ReadMemory> read_memory_;
  std::vector<std::string> notes_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_CATALOG_H_
