// Reads the finished shards of a recording.
//
//   ASSIGN_OR_RETURN(auto reader, catalog->OpenReader("run1"));
//   RowRead read = RowRead::OfHookPoint(reader, /*hook_point=*/0, {{first_row, rows}}, out);
//   RETURN_IF_ERROR(read.Finish());                 // or Advance, step by step
#ifndef HOOKLINE_SERVER_RECORDING_READER_H_
#define HOOKLINE_SERVER_RECORDING_READER_H_

#include <cstdint>
#include <map>
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
#include "server/recording/read_memory.h"
#include "server/recording/shard.h"
#include "server/recording/shard_files.h"

namespace hookline {

// Describes a shard that has changed since it was written.
struct ShardDamage {
  std::string file;
  std::string error;
};

// Thread-safe. It reads the rows of its manifest even if the recording grows, ends or is removed meanwhile. If too many
// of its shards are removed (see ShardFileCache), reads end with ABORTED.
class RecordingReader {
 public:
  RecordingReader(std::shared_ptr<RecordingFiles> files, std::shared_ptr<RecordingFiles::Lease> lease,
                  std::shared_ptr<const Manifest> manifest, std::shared_ptr<ReadMemory> memory)
      : files_(std::move(files)),
        lease_(std::move(lease)),
        manifest_(std::move(manifest)),
        memory_(std::move(memory)) {}

  const Manifest& manifest() const { return *manifest_; }
  // Bounds the buffers that rows are read into.
  ReadMemory& memory() const { return *memory_; }

  // Reads every byte of a shard and compares length, header and checksum with the manifest. Returns none if they agree.
  // ABORTED: the shard was removed meanwhile.
  absl::StatusOr<std::optional<ShardDamage>> VerifyShard(size_t shard) const;

  // Returns a check that does the same in slices. Give an error of its Advance to DamageOf.
  absl::StatusOr<std::unique_ptr<ShardCheck>> BeginVerify(size_t shard) const;
  // Returns the damage of a shard whose check found `error`, or ABORTED if the catalog no longer names the shard.
  absl::StatusOr<ShardDamage> DamageOf(size_t shard, const absl::Status& error) const;

 private:
  friend class RowRead;

  absl::StatusOr<std::shared_ptr<const ShardLayout>> LayoutOf(size_t shard) const;

  const std::shared_ptr<RecordingFiles> files_;
  const std::shared_ptr<RecordingFiles::Lease> lease_;
  const std::shared_ptr<const Manifest> manifest_;
  const std::shared_ptr<ReadMemory> memory_;
  mutable absl::Mutex mutex_;
  // The layouts, without headers, of the shards that were used last.
  mutable std::map<size_t, std::shared_ptr<const ShardLayout>> layouts_ ABSL_GUARDED_BY(mutex_);
};

// Consecutive rows of a recording.
struct RowRange {
  int64_t first_row = 0;
  int64_t rows = 0;
  // The number of rows before them in the output.
  int64_t out_row = 0;
};

// Copies rows of a recording to memory. Rows of a shard are given only after this server has compared its checksum, and
// only while the file has the same size and time as then. One thread at a time.
class RowRead {
 public:
  // Reads the rows of `ranges`, which are in the recording's order and within Manifest::RowsOf. `out` has room for the
  // values of all of them and must outlive the read.
  static RowRead OfHookPoint(std::shared_ptr<const RecordingReader> reader, int hook_point,
                             std::vector<RowRange> ranges, uint8_t* out);

  // Room for the provenance of the rows, one value for each row.
  struct ProvenanceOut {
    int64_t* sequence;
    int64_t* token_id;
    int32_t* position;
  };
  static RowRead OfProvenance(std::shared_ptr<const RecordingReader> reader, std::vector<RowRange> ranges,
                              ProvenanceOut out);

  // Does part of the work: at most one slice of a check, or the rows of the shards that need no check. Returns true
  // when all work is done. DATA_LOSS, naming shard and rows: the shard has changed since it was written. ABORTED: the
  // recording was removed, or continued with other rows, while it was read.
  absl::StatusOr<bool> Advance();

  // Calls Advance until all is done.
  absl::Status Finish();

 private:
  struct Target {
    int tensor;
    uint8_t* out;
  };

  RowRead(std::shared_ptr<const RecordingReader> reader, std::vector<RowRange> ranges, std::vector<Target> targets)
      : reader_(std::move(reader)), ranges_(std::move(ranges)), targets_(std::move(targets)) {}

  absl::StatusOr<bool> AdvanceInShard(size_t index, const ShardInfo& shard);
  absl::Status CopyFrom(const ReadableFile& file, const ShardLayout& layout, size_t* range, int64_t* taken) const;
  absl::Status Explain(const ShardInfo& shard, const absl::Status& error) const;

  std::shared_ptr<const RecordingReader> reader_;
  std::vector<RowRange> ranges_;
  std::vector<Target> targets_;
  size_t range_ = 0;   // the range to read next
  int64_t taken_ = 0;  // its rows that are done
  std::unique_ptr<ShardCheck> check_;
  int tries_ = 0;  // checks of the current shard
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_READER_H_
