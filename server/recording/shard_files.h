// Keeps shard files open for reading, and remembers which of them were checked. All readers of a catalog share them.
//
// Files of a recording may be removed while it is read: by DeleteRecording, or because a longer or shorter shard
// replaced them. RecordingFiles knows which files the catalog still names, and keeps those open that its readers may
// still need.
#ifndef HOOKLINE_SERVER_RECORDING_SHARD_FILES_H_
#define HOOKLINE_SERVER_RECORDING_SHARD_FILES_H_

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"

namespace hookline {

// The open files of a whole server; the least recently used one is closed first. Thread-safe.
class ShardFileCache {
 public:
  // A recording, a file name, and the checksum of the file's contents, since a name can be used again for other rows.
  struct Key {
    int64_t recording = 0;
    std::string file;
    std::string xxh3;

    bool operator<(const Key& other) const {
      return std::tie(recording, file, xxh3) < std::tie(other.recording, other.file, other.xxh3);
    }
  };

  // Returns null if the file is not open.
  std::shared_ptr<const ReadableFile> Find(const Key& key);
  void Add(const Key& key, std::shared_ptr<const ReadableFile> file);
  // These close one file, or all files of a recording: open files would keep removed ones on the disk.
  void Drop(const Key& key);
  void DropRecording(int64_t recording);

  // Returns a number that no other recording of this server has or had.
  int64_t NextRecording();
  // Counts a file that stays open although it was removed. Returns false if there are too many.
  bool CountKept();
  void UncountKept(int64_t files);

 private:
  using Entry = std::pair<Key, std::shared_ptr<const ReadableFile>>;

  absl::Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // the most recently used first
  std::map<Key, std::list<Entry>::iterator> by_key_ ABSL_GUARDED_BY(mutex_);
  int64_t next_recording_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t kept_ ABSL_GUARDED_BY(mutex_) = 0;
};

// The files of one recording. Thread-safe. The catalog and each reader share it.
class RecordingFiles {
 public:
  // All readers of a recording at one time share a lease, which the last of them destroys.
  class Lease {
   public:
    Lease(std::shared_ptr<ShardFileCache> cache, std::unique_ptr<Directory> directory)
        : cache_(std::move(cache)), directory_(std::move(directory)) {}
    ~Lease();

   private:
    friend class RecordingFiles;

    const std::shared_ptr<ShardFileCache> cache_;
    const std::unique_ptr<Directory> directory_;
    absl::Mutex mutex_;
    // Files of shards that the catalog no longer names, by file and checksum.
    std::map<std::pair<std::string, std::string>, std::shared_ptr<const ReadableFile>> kept_ ABSL_GUARDED_BY(mutex_);
    std::map<std::pair<std::string, std::string>, FileFacts> checked_ ABSL_GUARDED_BY(mutex_);
  };

  explicit RecordingFiles(std::shared_ptr<ShardFileCache> cache)
      : cache_(std::move(cache)), recording_(cache_->NextRecording()) {}
  ~RecordingFiles() { cache_->DropRecording(recording_); }
  RecordingFiles(const RecordingFiles&) = delete;
  RecordingFiles& operator=(const RecordingFiles&) = delete;

  // Sets the catalog's manifest; null means that the recording is removed, or about to be. Files of shards that the new
  // manifest does not name are opened for current readers, so that the caller can remove them.
  void SetManifest(std::shared_ptr<const Manifest> manifest);

  // Returns the lease that a reader holds as long as it reads. `open` opens the recording's directory.
  absl::StatusOr<std::shared_ptr<Lease>> Read(const std::function<absl::StatusOr<std::unique_ptr<Directory>>()>& open);

  // NOT_FOUND: the file is gone.
  absl::StatusOr<std::shared_ptr<const ReadableFile>> Open(Lease& lease, const ShardInfo& shard);

  // Opens the file that has the shard's name now, even if another file of that name is open.
  static absl::StatusOr<std::shared_ptr<const ReadableFile>> OpenAnew(Lease& lease, const ShardInfo& shard);

  // Returns whether the catalog still names this shard with this checksum.
  bool IsCurrent(const ShardInfo& shard) const;

  // IsChecked returns whether the shard's checksum was found right while its file had these facts; SetChecked
  // records that.
  bool IsChecked(Lease& lease, const ShardInfo& shard, const FileFacts& facts) const;
  void SetChecked(Lease& lease, const ShardInfo& shard, const FileFacts& facts);

 private:
  ShardFileCache::Key KeyOf(const ShardInfo& shard) const { return {recording_, shard.file, shard.xxh3}; }
  static bool Names(const Manifest* manifest, const ShardInfo& shard);

  const std::shared_ptr<ShardFileCache> cache_;
  const int64_t recording_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<const Manifest> manifest_ ABSL_GUARDED_BY(mutex_);
  std::weak_ptr<Lease> lease_ ABSL_GUARDED_BY(mutex_);
  // The key is a file and a checksum of a shard that the manifest names.
  std::map<std::pair<std::string, std::string>, FileFacts> checked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_SHARD_FILES_H_
