#include "server/recording/writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// Returns `bytes` bytes from `offset` on of the concatenated pieces.
std::vector<absl::Span<const uint8_t>> Cut(absl::Span<const absl::Span<const uint8_t>> pieces, int64_t offset,
                                           int64_t bytes) {
  std::vector<absl::Span<const uint8_t>> cut;
  for (absl::Span<const uint8_t> piece : pieces) {
    const int64_t skipped = std::min(offset, static_cast<int64_t>(piece.size()));
    piece.remove_prefix(skipped);
    offset -= skipped;
    piece = piece.subspan(0, bytes);
    if (!piece.empty()) cut.push_back(piece);
    bytes -= static_cast<int64_t>(piece.size());
    if (bytes == 0) break;
  }
  return cut;
}

// If a name is not found in an open directory, the directory was removed.
absl::Status ExplainGone(const Manifest& manifest, absl::Status status) {
  if (!absl::IsNotFound(status)) return status;
  return absl::DataLossError(absl::StrCat("recording ", manifest.name, " was removed by another program ",
                                          "while it was written: ", status.message()));
}

template <typename T>
absl::Span<const uint8_t> BytesOf(absl::Span<const T> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

RecordingWriter::RecordingWriter(std::unique_ptr<Directory> directory, Manifest manifest, Host host)
    : directory_(std::move(directory)),
      manifest_(std::move(manifest)),
      host_(std::move(host)),
      resume_token_(manifest_.resume_token),
      resume_row_(manifest_.resume_row),
      rows_(manifest_.rows()),
      bytes_(manifest_.bytes()) {
  written_.assign(kProvenanceTensors, manifest_.rows());
  for (size_t i = 0; i < manifest_.hook_points.size(); ++i) written_.push_back(manifest_.RowsOf(static_cast<int>(i)));
}

RecordingWriter::~RecordingWriter() {
  if (closed_) return;
  manifest_.state = RecordingState::kInterrupted;
  host_.closed(manifest_, /*is_on_disk=*/false);
}

absl::Status RecordingWriter::Append(const RowsToRecord& rows) { return ExplainGone(manifest_, AppendRows(rows)); }

absl::Status RecordingWriter::AppendRows(const RowsToRecord& rows) {
  if (failed_ || closed_) return absl::FailedPreconditionError("the recording takes no more rows");
  failed_ = true;  // until everything succeeds
  const int tensor = kProvenanceTensors + rows.hook_point;
  const RecordedHookPoint& point = manifest_.hook_points[rows.hook_point];
  const int64_t row_bytes = manifest_.LayoutOf(rows.hook_point).bytes();
  const int64_t end_row = rows.first_row + rows.rows;
  if (rows.first_row > written_[tensor] || end_row > point.max_activations) {
    return absl::InternalError(absl::StrCat(point.name, ": rows ", rows.first_row, " to ", end_row, " after row ",
                                            written_[tensor], ", budget ", point.max_activations));
  }
  const int64_t group_rows = static_cast<int64_t>(rows.sequence.size());
  if (group_rows < rows.rows || rows.position.size() != rows.sequence.size() ||
      rows.token_id.size() != rows.sequence.size()) {
    return absl::InternalError("rows to record without provenance");
  }
  RETURN_IF_ERROR(AppendProvenance(rows));
  const int64_t dropped = std::min(rows.rows, written_[tensor] - rows.first_row);
  if (dropped < rows.rows) {
    const auto data = Cut(rows.data, dropped * row_bytes, (rows.rows - dropped) * row_bytes);
    RETURN_IF_ERROR(Distribute(tensor, rows.first_row + dropped, rows.rows - dropped, data));
  }
  if (rows.hook_point == LastHookPointOf(rows.first_row)) {
    RETURN_IF_ERROR(FinishFullShards());
    const int64_t group_end = std::min(rows.first_row + group_rows, manifest_.max_rows());
    // If the row group ends before the rows that were recorded earlier, the token on the disk belongs to a later row.
    if (group_end >= rows_.load(std::memory_order_relaxed)) {
      rows_.store(group_end, std::memory_order_relaxed);
      resume_token_ = std::string(rows.resume_token);
      resume_row_ = group_end;
    }
  }
  failed_ = false;
  return absl::OkStatus();
}

absl::Status RecordingWriter::AppendProvenance(const RowsToRecord& rows) {
  const int64_t first_row = written_[kSequenceTensor];
  const int64_t end_row = std::min(rows.first_row + static_cast<int64_t>(rows.sequence.size()), manifest_.max_rows());
  if (first_row >= end_row) return absl::OkStatus();
  const size_t skipped = first_row - rows.first_row;
  const size_t count = end_row - first_row;
  const auto token_ids = rows.token_id.subspan(skipped, count);
  const std::vector<int64_t> wide_token_ids(token_ids.begin(), token_ids.end());
  const auto distribute = [&](int tensor, absl::Span<const uint8_t> bytes) {
    return Distribute(tensor, first_row, static_cast<int64_t>(count), {bytes});
  };
  RETURN_IF_ERROR(distribute(kSequenceTensor, BytesOf(rows.sequence.subspan(skipped, count))));
  RETURN_IF_ERROR(distribute(kTokenIdTensor, BytesOf(absl::MakeConstSpan(wide_token_ids))));
  return distribute(kPositionTensor, BytesOf(rows.position.subspan(skipped, count)));
}

absl::Status RecordingWriter::Distribute(int tensor, int64_t first_row, int64_t rows,
                                         absl::Span<const absl::Span<const uint8_t>> data) {
  int64_t bytes = 0;
  for (const auto& piece : data) bytes += static_cast<int64_t>(piece.size());
  const int64_t row_bytes = bytes / rows;
  RETURN_IF_ERROR(host_.charge(bytes));
  for (int64_t done = 0; done < rows;) {
    ASSIGN_OR_RETURN(ShardWriter * shard, ShardOf(first_row + done));
    const int64_t now = std::min(rows - done, shard->RowsLeft(tensor));
    RETURN_IF_ERROR(shard->Append(tensor, now, Cut(data, done * row_bytes, now * row_bytes)));
    done += now;
  }
  written_[tensor] = first_row + rows;
  bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::StatusOr<ShardWriter*> RecordingWriter::ShardOf(int64_t row) {
  const int64_t first_row = row - row % manifest_.shard_rows;
  for (const auto& shard : open_shards_) {
    if (shard->first_row() == first_row) return shard.get();
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ShardWriter> shard, ShardWriter::Create(*directory_, manifest_, first_row));
  // The last shard on the disk is short and these rows follow it, so the new shard begins with its rows.
  if (!manifest_.shards.empty() && manifest_.shards.back().first_row == first_row) {
    const ShardInfo& last = manifest_.shards.back();
    ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, directory_->OpenFile(last.file));
    ASSIGN_OR_RETURN(const ShardLayout layout, LayOutShard(manifest_, last.first_row, last.end_row()));
    RETURN_IF_ERROR(CopyRows(layout, *file, last.rows, *shard));
    superseded_ = last.file;
  }
  open_shards_.push_back(std::move(shard));
  return open_shards_.back().get();
}

int RecordingWriter::LastHookPointOf(int64_t row) const {
  int last = -1;
  for (size_t i = 0; i < manifest_.hook_points.size(); ++i) {
    if (manifest_.hook_points[i].max_activations > row) last = static_cast<int>(i);
  }
  return last;
}

absl::Status RecordingWriter::FinishFullShards() {
  while (!open_shards_.empty() && open_shards_.front()->full()) {
    const int64_t first_row = open_shards_.front()->first_row();
    const int64_t end_row = std::min(first_row + manifest_.shard_rows, manifest_.max_rows());
    ASSIGN_OR_RETURN(ShardInfo shard, open_shards_.front()->Finish(manifest_, end_row - first_row));
    open_shards_.pop_front();
    RETURN_IF_ERROR(AddShard(std::move(shard)));
  }
  return absl::OkStatus();
}

absl::Status RecordingWriter::AddShard(ShardInfo shard) {
  if (!superseded_.empty()) manifest_.shards.pop_back();
  manifest_.shards.push_back(std::move(shard));
  RETURN_IF_ERROR(Write(RecordingState::kRunning));
  host_.publish(manifest_);
  if (!superseded_.empty()) RETURN_IF_ERROR(directory_->Remove(std::exchange(superseded_, "")));
  return absl::OkStatus();
}

absl::Status RecordingWriter::Write(RecordingState state) {
  // A token that continues after rows which were lost with an unfinished shard is useless.
  if (resume_row_ <= manifest_.rows()) {
    manifest_.resume_token = resume_token_;
    manifest_.resume_row = resume_row_;
  }
  manifest_.state = state;
  manifest_.update_time = absl::Now();
  return WriteManifest(*directory_, manifest_);
}

absl::Status RecordingWriter::CloseShards() {
  for (auto& shard : open_shards_) {
    const int64_t rows = rows_.load(std::memory_order_relaxed) - shard->first_row();
    const bool adds_rows = rows > 0 && shard->first_row() + rows > manifest_.rows();
    if (failed_ || !adds_rows) {
      if (absl::Status discarded = shard->Discard(); !absl::IsNotFound(discarded)) RETURN_IF_ERROR(discarded);
      superseded_.clear();
      continue;
    }
    ASSIGN_OR_RETURN(ShardInfo info, shard->Finish(manifest_, rows));
    RETURN_IF_ERROR(AddShard(std::move(info)));
  }
  open_shards_.clear();
  return absl::OkStatus();
}

absl::Status RecordingWriter::Close(RecordingState state, const absl::Status& error) {
  if (closed_) return absl::FailedPreconditionError("the recording is closed");
  closed_ = true;
  absl::Status status = ExplainGone(manifest_, CloseShards());
  if (status.ok()) {
    manifest_.error = Escaped(error.message());
    status = ExplainGone(manifest_, Write(state));
  }
  if (!status.ok()) {
    manifest_.state = RecordingState::kFailed;
    manifest_.error = Escaped(error.ok() ? status.message() : error.message());
  }
  host_.closed(manifest_, /*is_on_disk=*/status.ok());
  return status;
}

}  // namespace hookline
