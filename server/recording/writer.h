// Writes a recording, row group by row group. Catalog makes writers:
//
//   ASSIGN_OR_RETURN(std::unique_ptr<RecordingWriter> writer, catalog.Create(spec));
//   for (...) RETURN_IF_ERROR(writer->Append(rows));
//   RETURN_IF_ERROR(writer->Close(RecordingState::kComplete, absl::OkStatus()));
#ifndef HOOKLINE_SERVER_RECORDING_WRITER_H_
#define HOOKLINE_SERVER_RECORDING_WRITER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"
#include "server/recording/shard_writer.h"

namespace hookline {

// Rows of one hook point, as a capture's chunk carries them. The spans are used only during the call.
struct RowsToRecord {
  int hook_point = 0;  // into Manifest::hook_points
  int64_t first_row = 0;
  int64_t rows = 0;
  // The rows' bytes (base/row_layout.h), one row after another, in pieces that can end inside a row.
  absl::Span<const absl::Span<const uint8_t>> data;
  // One value for each row of the row group, which can have more rows than `rows` (where a budget cuts them off).
  absl::Span<const int64_t> sequence;
  absl::Span<const int32_t> position;
  absl::Span<const uint32_t> token_id;
  // The token that continues the capture after these rows.
  absl::string_view resume_token;
};

// One thread at a time may use a writer; any thread may call rows() and bytes(). A writer destroyed without Close
// leaves what a crash would leave, and the recording becomes INTERRUPTED.
class RecordingWriter {
 public:
  // The catalog's side of a writer.
  struct Host {
    // Counts `bytes` more bytes against the catalog's quota, or returns RESOURCE_EXHAUSTED with the numbers.
    std::function<absl::Status(int64_t bytes)> charge;
    // Called when this manifest is on the disk.
    std::function<void(const Manifest&)> publish;
    // Called when the writer has ended. Unless `is_on_disk`, the manifest on the disk may be an older one.
    std::function<void(const Manifest& manifest, bool is_on_disk)> closed;
  };

  // `manifest` must be on the disk in `directory` and be RUNNING, and its shards must be complete.
  RecordingWriter(std::unique_ptr<Directory> directory, Manifest manifest, Host host);
  ~RecordingWriter();
  RecordingWriter(const RecordingWriter&) = delete;
  RecordingWriter& operator=(const RecordingWriter&) = delete;

  // Takes chunks in the order in which a capture sends them: row group by row group, and in each group one chunk for
  // every hook point whose budget is not reached, in order. Rows that were recorded already are dropped, so that a
  // capture may resume a little before the recording's end. INTERNAL: rows out of that order. RESOURCE_EXHAUSTED: the
  // disk or the quota is full, or the free space would fall below its floor. DATA_LOSS: the directory was removed.
  // After an error only Close may be called.
  absl::Status Append(const RowsToRecord& rows);

  // Finishes the open shard, up to the last whole row group, and sets the state (not kRunning; `error` belongs to
  // kFailed). If the disk refuses, the recording is FAILED with the shards finished before, and the error is returned.
  absl::Status Close(RecordingState state, const absl::Status& error);

  const Manifest& manifest() const { return manifest_; }
  // Returns the rows of whole row groups, in finished shards or not.
  int64_t rows() const { return rows_.load(std::memory_order_relaxed); }
  // Returns the bytes of values and provenance, in finished shards or not.
  int64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

 private:
  absl::Status AppendRows(const RowsToRecord& rows);
  // Appends a run of rows from `first_row` to a tensor, shard by shard.
  absl::Status Distribute(int tensor, int64_t first_row, int64_t rows,
                          absl::Span<const absl::Span<const uint8_t>> data);
  absl::Status AppendProvenance(const RowsToRecord& rows);
  absl::StatusOr<ShardWriter*> ShardOf(int64_t row);
  absl::Status FinishFullShards();
  absl::Status AddShard(ShardInfo shard);
  absl::Status Write(RecordingState state);
  absl::Status CloseShards();
  int LastHookPointOf(int64_t row) const;

  const std::unique_ptr<Directory> directory_;
  Manifest manifest_;
  const Host host_;
  std::deque<std::unique_ptr<ShardWriter>> open_shards_;  // consecutive, the first one first
  std::vector<int64_t> written_;                          // rows of each tensor, in the order of ShardLayout::tensors
  std::string superseded_;    // a short shard whose rows are in open_shards_.front(); empty: none
  std::string resume_token_;  // after the last whole row group, which may not be in a finished shard yet
  int64_t resume_row_;
  bool failed_ = false;
  bool closed_ = false;
  std::atomic<int64_t> rows_;
  std::atomic<int64_t> bytes_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_WRITER_H_
