#include "server/recording/reader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// With many hook points a layout takes a few kilobytes. A shuffled read returns to every shard again and again.
constexpr size_t kMaxLayouts = 1024;
// A shard that is modified while it is read is checked again, up to this many times.
constexpr int kMaxTries = 3;

}  // namespace

absl::StatusOr<std::shared_ptr<const ShardLayout>> RecordingReader::LayoutOf(size_t shard) const {
  absl::MutexLock lock(&mutex_);
  const auto found = layouts_.find(shard);
  if (found != layouts_.end()) return found->second;
  const ShardInfo& info = manifest_->shards[shard];
  ASSIGN_OR_RETURN(ShardLayout layout, LayOutShard(*manifest_, info));
  layout.header = std::string();
  if (layouts_.size() >= kMaxLayouts) layouts_.clear();
  return layouts_[shard] = std::make_shared<const ShardLayout>(std::move(layout));
}

absl::StatusOr<std::unique_ptr<ShardCheck>> RecordingReader::BeginVerify(size_t shard) const {
  const ShardInfo& info = manifest_->shards[shard];
  ASSIGN_OR_RETURN(std::shared_ptr<const ReadableFile> file, RecordingFiles::OpenAnew(*lease_, info));
  return std::make_unique<ShardCheck>(std::move(file), *manifest_, info);
}

absl::StatusOr<ShardDamage> RecordingReader::DamageOf(size_t shard, const absl::Status& error) const {
  const ShardInfo& info = manifest_->shards[shard];
  if (files_->IsCurrent(info)) return ShardDamage{info.file, Escaped(error.message())};
  return absl::AbortedError(
      absl::StrCat("recording ", manifest_->name, " was removed or continued while it was read; try again"));
}

absl::StatusOr<std::optional<ShardDamage>> RecordingReader::VerifyShard(size_t shard) const {
  const auto damage = [&](const absl::Status& error) -> absl::StatusOr<std::optional<ShardDamage>> {
    ASSIGN_OR_RETURN(ShardDamage found, DamageOf(shard, error));
    return found;
  };
  auto check = BeginVerify(shard);
  if (!check.ok()) return damage(check.status());
  absl::StatusOr<bool> done = false;
  while (done.ok() && !*done) done = (*check)->Advance();
  if (!done.ok()) return damage(done.status());
  return std::nullopt;
}

RowRead RowRead::OfHookPoint(std::shared_ptr<const RecordingReader> reader, int hook_point,
                             std::vector<RowRange> ranges, uint8_t* out) {
  return RowRead(std::move(reader), std::move(ranges), {{kProvenanceTensors + hook_point, out}});
}

RowRead RowRead::OfProvenance(std::shared_ptr<const RecordingReader> reader, std::vector<RowRange> ranges,
                              ProvenanceOut out) {
  return RowRead(std::move(reader), std::move(ranges),
                 {{kSequenceTensor, reinterpret_cast<uint8_t*>(out.sequence)},
                  {kTokenIdTensor, reinterpret_cast<uint8_t*>(out.token_id)},
                  {kPositionTensor, reinterpret_cast<uint8_t*>(out.position)}});
}

absl::Status RowRead::Finish() {
  while (true) {
    ASSIGN_OR_RETURN(const bool done, Advance());
    if (done) return absl::OkStatus();
  }
}

absl::StatusOr<bool> RowRead::Advance() {
  const Manifest& manifest = reader_->manifest();
  while (range_ < ranges_.size()) {
    const size_t index = manifest.ShardOf(ranges_[range_].first_row + taken_);
    const ShardInfo& shard = manifest.shards[index];
    absl::StatusOr<bool> done = AdvanceInShard(index, shard);
    if (!done.ok()) return Explain(shard, done.status());
    if (!*done) return false;
    tries_ = 0;
  }
  return true;
}

// Returns whether all wanted rows of this shard have been copied.
absl::StatusOr<bool> RowRead::AdvanceInShard(size_t index, const ShardInfo& shard) {
  RecordingFiles& files = *reader_->files_;
  if (check_ != nullptr) {
    ASSIGN_OR_RETURN(const bool done, check_->Advance());
    if (!done) return false;
    files.SetChecked(*reader_->lease_, shard, check_->facts());
    check_.reset();
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const ReadableFile> file, files.Open(*reader_->lease_, shard));
  ASSIGN_OR_RETURN(const FileFacts before, file->Facts());
  if (!files.IsChecked(*reader_->lease_, shard, before)) {
    if (++tries_ > kMaxTries) return absl::DataLossError("is being written to while it is read");
    check_ = std::make_unique<ShardCheck>(file, reader_->manifest(), shard);
    return false;
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const ShardLayout> layout, reader_->LayoutOf(index));
  size_t range = range_;
  int64_t taken = taken_;
  const absl::Status copied = CopyFrom(*file, *layout, &range, &taken);
  ASSIGN_OR_RETURN(const FileFacts after, file->Facts());
  if (after != before) {
    if (++tries_ > kMaxTries) return absl::DataLossError("is being written to while it is read");
    check_ = std::make_unique<ShardCheck>(file, reader_->manifest(), shard);
    return false;
  }
  RETURN_IF_ERROR(copied);
  range_ = range;
  taken_ = taken;
  return true;
}

// Copies the rows from `range` and `taken` on that are in this shard, and moves both past them.
absl::Status RowRead::CopyFrom(const ReadableFile& file, const ShardLayout& layout, size_t* range,
                               int64_t* taken) const {
  while (*range < ranges_.size() && ranges_[*range].first_row + *taken < layout.end_row) {
    const RowRange& wanted = ranges_[*range];
    const int64_t skipped = wanted.first_row + *taken - layout.first_row;
    const int64_t rows = std::min(wanted.rows - *taken, layout.end_row - layout.first_row - skipped);
    for (const Target& target : targets_) {
      const ShardTensor& tensor = layout.tensors[target.tensor];
      uint8_t* out = target.out + (wanted.out_row + *taken) * tensor.row_bytes;
      RETURN_IF_ERROR(file.ReadAt(tensor.offset + skipped * tensor.row_bytes,
                                  absl::MakeSpan(out, static_cast<size_t>(rows * tensor.row_bytes))));
    }
    *taken += rows;
    if (*taken == wanted.rows) {
      ++*range;
      *taken = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status RowRead::Explain(const ShardInfo& shard, const absl::Status& error) const {
  const std::string& name = reader_->manifest().name;
  if (!reader_->files_->IsCurrent(shard)) {
    return absl::AbortedError(
        absl::StrCat("recording ", name, " was removed or continued while it was read; read it again"));
  }
  return absl::DataLossError(absl::StrCat("recording ", name, ", rows ", shard.first_row, " to ", shard.end_row() - 1,
                                          ", in shard ", shard.file, ": ", error.message()));
}

}  // namespace hookline
