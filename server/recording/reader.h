// Reads the finished shards of a recording from a memory map.
#ifndef HOOKLINE_SERVER_RECORDING_READER_H_
#define HOOKLINE_SERVER_RECORDING_READER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"
#include "server/recording/shard.h"

namespace hookline {

// Consecutive rows in a mapped shard.
struct RecordedRun {
  std::shared_ptr<const void> owner;  // keeps `bytes` alive
  absl::Span<const uint8_t> bytes;
};

// A shard that is not as it was written.
struct ShardDamage {
  std::string file;
  std::string error;
};

// Thread-safe. Goes on reading when the recording grows, ends or is removed meanwhile: it holds the shards that the
// manifest named (of more than 1024, the last 1024: then a removal can end it with DATA_LOSS). Whoever truncates a
// shard under it ends the process with SIGBUS: the directory is the server's alone.
class RecordingReader {
 public:
  // NOT_FOUND: a shard was removed since the manifest was read.
  static absl::StatusOr<std::shared_ptr<const RecordingReader>> Open(std::unique_ptr<Directory> directory,
                                                                     Manifest manifest);

  const Manifest& manifest() const { return manifest_; }

  // `rows` rows of a hook point from `first_row` on, in as few runs as there are shards under them. The range lies
  // within Manifest::RowsOf. DATA_LOSS: a shard is not there, or its length or header is not what the manifest says;
  // its values are checked by VerifyShard alone.
  absl::StatusOr<std::vector<RecordedRun>> Rows(int hook_point, int64_t first_row, int64_t rows) const;

  // Copies one row of a hook point (row_bytes of it) to `out`.
  absl::Status CopyRow(int hook_point, int64_t row, uint8_t* out) const;

  // Where one row comes from.
  struct Provenance {
    int64_t sequence = 0;
    int32_t position = 0;
    uint32_t token_id = 0;
  };
  absl::StatusOr<Provenance> ProvenanceOf(int64_t row) const;

  // Reads every byte of a shard and compares length, header and checksum with the manifest. None: it is as it was
  // written.
  std::optional<ShardDamage> VerifyShard(size_t shard) const;

 private:
  struct OpenShard {
    ShardLayout layout;
    FileView view;
  };

  RecordingReader(std::unique_ptr<Directory> directory, Manifest manifest);

  absl::StatusOr<std::shared_ptr<const OpenShard>> ShardAt(int64_t row) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::shared_ptr<const OpenShard>> CheckShard(const ShardInfo& shard, FileView view) const;

  const std::unique_ptr<Directory> directory_;
  const Manifest manifest_;
  mutable absl::Mutex mutex_;
  std::vector<FileView> held_;  // the last shards, by index less first_held_
  size_t first_held_ = 0;
  mutable std::vector<std::shared_ptr<const OpenShard>> open_ ABSL_GUARDED_BY(mutex_);  // null: not used lately
  mutable int64_t opened_ ABSL_GUARDED_BY(mutex_) = 0;
};

// An order of the numbers 0 to size - 1 that `seed` alone decides, without a table: a Feistel network over the next
// power of four, walked until it is back in range. Immutable.
class ShuffledOrder {
 public:
  ShuffledOrder(int64_t size, uint64_t seed);

  // The number at place `index`, 0 <= index < size.
  int64_t operator[](int64_t index) const;

 private:
  uint64_t Permute(uint64_t value) const;

  int64_t size_;
  uint64_t seed_;
  int half_bits_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_READER_H_
