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
  int64_t quota_bytes = 0;                   // the limit for all files together; 0: no limit
  int64_t free_bytes = int64_t{1} << 30;     // the space that recordings leave free on the file system
  int64_t shard_bytes = int64_t{256} << 20;  // the approximate size of a shard, which has at least one row
  int64_t read_bytes = int64_t{512} << 20;   // the memory for the messages of all reads together
};

// The point to which a recording is cut back and from which it is continued.
struct ResumePoint {
  int64_t row = 0;
  std::string token;
};

// The figures that an operator watches: how many recordings are in each state, and how much space they have.
struct CatalogUsage {
  std::map<RecordingState, int64_t> recordings;  // has every state, even where the count is 0
  int64_t unreadable = 0;                        // recordings whose manifest cannot be read
  int64_t used_bytes = 0;                        // the same as Catalog::used_bytes()
  int64_t quota_bytes = 0;                       // 0: no limit
  std::optional<int64_t> free_bytes;             // free on the file system; absent: unknown
  int64_t kept_free_bytes = 0;                   // below this much, nothing more is written
};

// Thread-safe. It must outlive its writers and merges; readers may outlive it.
class Catalog {
 public:
  // Opens the directory `folder` of `shared`, and makes it if it is missing, for the recordings of one of several
  // servers that share a directory. Merge then takes recordings from all folders. Errors are those of Open, and
  // INVALID_ARGUMENT: `folder` cannot be a recording's name.
  static absl::StatusOr<std::unique_ptr<Catalog>> OpenShared(std::unique_ptr<Directory> shared,
                                                             const std::string& folder, const CatalogOptions& options);

  // Locks the directory and sweeps it: leftovers are removed, a recording that was RUNNING becomes INTERRUPTED, and one
  // whose shards are missing or have another length becomes FAILED. Other files are left alone. FAILED_PRECONDITION:
  // another process has locked the directory. Recordings on a read-only disk can still be read.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(std::unique_ptr<Directory> root, const CatalogOptions& options);

  Catalog(const Catalog&) = delete;
  Catalog& operator=(const Catalog&) = delete;

  // Returns what Open found and an operator should look at, one line each.
  const std::vector<std::string>& notes() const { return notes_; }

  // Creates a recording. The caller fills in the part of `manifest` that the request determines: name, model,
  // fingerprint, request_digest, deterministic, dtype, hook_points, source, selection and resume_token (of the
  // capture's beginning). INVALID_ARGUMENT: the name is not allowed, or FORMAT.md reserves a hook point's name.
  // ALREADY_EXISTS; ABORTED: a recording of that name is being removed. RESOURCE_EXHAUSTED: the disk or the quota
  // is full.
  absl::StatusOr<std::unique_ptr<RecordingWriter>> Create(Manifest manifest);

  // Continues a recording that is not being written, after its last row or after `resume`, to which it is cut back
  // first. NOT_FOUND; FAILED_PRECONDITION: it is being written or removed, or it has fewer rows than `resume`;
  // DATA_LOSS: its last shard has changed since it was written, or its directory is gone; RESOURCE_EXHAUSTED.
  absl::StatusOr<std::unique_ptr<RecordingWriter>> Continue(absl::string_view name,
                                                            std::optional<ResumePoint> resume = std::nullopt);

  // Begins to merge complete recordings into a new one of that name. A part is a recording of this catalog, by its
  // name, or of a folder of the shared directory (OpenShared): `FOLDER/NAME`, or `*/NAME` for all folders that have
  // one. If a merge of the same parts exists already, nothing is left to do. INVALID_ARGUMENT: a name is not allowed,
  // or there is no shared directory; NOT_FOUND: a part does not exist; ALREADY_EXISTS: another recording has the name;
  // RESOURCE_EXHAUSTED: the disk or the quota is full; FAILED_PRECONDITION: see PlanMerge.
  absl::StatusOr<std::unique_ptr<RecordingMerge>> Merge(const std::string& name, const std::string& client,
                                                        const std::vector<std::string>& parts);

  // Returns a recording's manifest. INVALID_ARGUMENT: the name is not allowed; NOT_FOUND, also while the recording is
  // being removed; DATA_LOSS: its manifest cannot be read.
  absl::StatusOr<std::shared_ptr<const Manifest>> Get(absl::string_view name) const;

  // Returns up to `count` manifests in the order of their names, beginning after `after`. Manifests that cannot be read
  // are left out.
  std::vector<std::shared_ptr<const Manifest>> List(absl::string_view after, int64_t count) const;

  // Opens a reader of the shards that are finished now. Errors are those of Get; DATA_LOSS also if the recording's
  // directory was removed.
  absl::StatusOr<std::shared_ptr<const RecordingReader>> OpenReader(absl::string_view name) const;

  // Removes a recording, even if its directory is gone already, and returns the bytes of its shards.
  // FAILED_PRECONDITION: it is being written, or its directory holds other files, which are then all that remains.
  absl::StatusOr<int64_t> Delete(absl::string_view name);

  // Returns the bytes of all files, those being written included. Every recording takes some, even one without rows.
  int64_t used_bytes() const;

  CatalogUsage Usage() const;

 private:
  struct Entry {
    std::shared_ptr<const Manifest> manifest;  // null: damage says why
    absl::Status damage;
    std::shared_ptr<RecordingFiles> files;
    bool is_busy = false;           // has a writer, or is being merged or removed
    bool is_being_made = false;     // may have no directory or manifest on the disk yet
    bool is_being_removed = false;  // treated as gone, except that its name is taken
    int64_t used_bytes = 0;         // size of the directory, the manifest, and the shards that it names
    int64_t charged_bytes = 0;      // charged by its writer or merge, beyond used_bytes
  };

  Catalog(std::unique_ptr<Directory> root, const CatalogOptions& options)
      : root_(std::move(root)),
        options_(options),
        open_files_(std::make_shared<ShardFileCache>()),
        read_memory_(std::make_shared<ReadMemory>(options.read_bytes)) {}

  // Makes the directory of an entry that is being made. ALREADY_EXISTS; RESOURCE_EXHAUSTED.
  absl::StatusOr<std::unique_ptr<Directory>> MakeRecording(const std::string& name);
  // Removes whatever exists of that recording on the disk.
  void Unmake(const std::string& name);
  void Forget(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes the name of a merge. Returns the recording if the same merge exists already, or null if the merge may begin.
  absl::StatusOr<std::shared_ptr<const Manifest>> Reserve(const Manifest& merged) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Sweep();
  void SweepRecording(const std::string& name);
  std::unique_ptr<RecordingWriter> MakeWriter(std::unique_ptr<Directory> directory, Manifest manifest);
  absl::StatusOr<Manifest> CutBack(Directory& directory, const Manifest& manifest, const ResumePoint& resume);
  // Counts bytes towards the quota and checks that the disk has room. `linked_bytes` take no room on the disk.
  absl::Status Charge(const std::string& name, int64_t bytes, int64_t linked_bytes = 0) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t UsedBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sets the manifest of the recording, also for its readers.
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
