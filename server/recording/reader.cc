#include "server/recording/reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// The kernel allows a process 65530 maps unless told otherwise; a few recordings may be read at a time.
constexpr int64_t kMaxMappedShards = 1024;

template <typename T>
T Load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// The finalizer of splitmix64.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

RecordingReader::RecordingReader(std::unique_ptr<Directory> directory, Manifest manifest)
    : directory_(std::move(directory)), manifest_(std::move(manifest)), open_(manifest_.shards.size()) {}

absl::StatusOr<std::shared_ptr<const RecordingReader>> RecordingReader::Open(std::unique_ptr<Directory> directory,
                                                                             Manifest manifest) {
  std::shared_ptr<RecordingReader> reader(new RecordingReader(std::move(directory), std::move(manifest)));
  const std::vector<ShardInfo>& shards = reader->manifest_.shards;
  reader->first_held_ = shards.size() > kMaxMappedShards ? shards.size() - kMaxMappedShards : 0;
  for (size_t i = reader->first_held_; i < shards.size(); ++i) {
    ASSIGN_OR_RETURN(FileView view, reader->directory_->Map(shards[i].file));
    reader->held_.push_back(std::move(view));
  }
  return reader;
}

absl::StatusOr<std::shared_ptr<const RecordingReader::OpenShard>> RecordingReader::CheckShard(const ShardInfo& shard,
                                                                                              FileView view) const {
  auto open = std::make_shared<OpenShard>();
  open->layout = LayOutShard(manifest_, shard.first_row, shard.end_row());
  open->view = std::move(view);
  const absl::Span<const uint8_t> bytes = open->view.bytes;
  if (static_cast<int64_t>(bytes.size()) != shard.bytes || shard.bytes != open->layout.file_bytes) {
    return absl::DataLossError(absl::StrCat(directory_->path(), "/", shard.file, ": of ", bytes.size(),
                                            " bytes; the manifest says ", shard.bytes, ", its rows take ",
                                            open->layout.file_bytes));
  }
  if (std::memcmp(bytes.data(), open->layout.header.data(), open->layout.header.size()) != 0) {
    return absl::DataLossError(
        absl::StrCat(directory_->path(), "/", shard.file, ": the header is not the one of the manifest's rows"));
  }
  return open;
}

absl::StatusOr<std::shared_ptr<const RecordingReader::OpenShard>> RecordingReader::ShardAt(int64_t row) const {
  const size_t index = row / manifest_.shard_rows;
  const ShardInfo& info = manifest_.shards[index];
  absl::MutexLock lock(&mutex_);
  if (open_[index] == nullptr) {
    FileView view;
    if (index >= first_held_) {
      view = held_[index - first_held_];
    } else {
      auto mapped = directory_->Map(info.file);
      if (!mapped.ok()) return absl::DataLossError(mapped.status().message());
      view = *std::move(mapped);
    }
    ASSIGN_OR_RETURN(std::shared_ptr<const OpenShard> shard, CheckShard(info, std::move(view)));
    if (opened_ == kMaxMappedShards) {
      std::fill(open_.begin(), open_.end(), nullptr);
      opened_ = 0;
    }
    open_[index] = std::move(shard);
    ++opened_;
  }
  return open_[index];
}

absl::StatusOr<std::vector<RecordedRun>> RecordingReader::Rows(int hook_point, int64_t first_row, int64_t rows) const {
  std::vector<RecordedRun> runs;
  while (rows > 0) {
    ASSIGN_OR_RETURN(std::shared_ptr<const OpenShard> shard, ShardAt(first_row));
    const ShardTensor& tensor = shard->layout.tensors[kProvenanceTensors + hook_point];
    const int64_t skipped = first_row - shard->layout.first_row;
    const int64_t now = std::min(rows, tensor.rows - skipped);
    runs.push_back({shard->view.owner,
                    shard->view.bytes.subspan(tensor.offset + skipped * tensor.row_bytes, now * tensor.row_bytes)});
    first_row += now;
    rows -= now;
  }
  return runs;
}

absl::Status RecordingReader::CopyRow(int hook_point, int64_t row, uint8_t* out) const {
  ASSIGN_OR_RETURN(std::shared_ptr<const OpenShard> shard, ShardAt(row));
  const ShardTensor& tensor = shard->layout.tensors[kProvenanceTensors + hook_point];
  const int64_t offset = tensor.offset + (row - shard->layout.first_row) * tensor.row_bytes;
  std::memcpy(out, shard->view.bytes.data() + offset, tensor.row_bytes);
  return absl::OkStatus();
}

absl::StatusOr<RecordingReader::Provenance> RecordingReader::ProvenanceOf(int64_t row) const {
  ASSIGN_OR_RETURN(std::shared_ptr<const OpenShard> shard, ShardAt(row));
  const auto value_at = [&](ProvenanceTensor which) {
    const ShardTensor& tensor = shard->layout.tensors[which];
    return shard->view.bytes.data() + tensor.offset + (row - shard->layout.first_row) * tensor.row_bytes;
  };
  return Provenance{Load<int64_t>(value_at(kSequenceTensor)), Load<int32_t>(value_at(kPositionTensor)),
                    static_cast<uint32_t>(Load<int64_t>(value_at(kTokenIdTensor)))};
}

std::optional<ShardDamage> RecordingReader::VerifyShard(size_t shard) const {
  const ShardInfo& info = manifest_.shards[shard];
  // Mapped anew and not kept: a check touches every page once.
  auto view = directory_->Map(info.file);
  if (!view.ok()) return ShardDamage{info.file, std::string(view.status().message())};
  const auto checked = CheckShard(info, *std::move(view));
  if (!checked.ok()) return ShardDamage{info.file, std::string(checked.status().message())};
  const std::string found = ShardChecksum((*checked)->layout, (*checked)->view.bytes);
  if (found == info.xxh3) return std::nullopt;
  return ShardDamage{info.file, absl::StrCat("checksum ", found, "; the manifest says ", info.xxh3)};
}

ShuffledOrder::ShuffledOrder(int64_t size, uint64_t seed) : size_(size), seed_(seed), half_bits_(1) {
  while ((uint64_t{1} << (2 * half_bits_)) < static_cast<uint64_t>(size)) ++half_bits_;
}

uint64_t ShuffledOrder::Permute(uint64_t value) const {
  constexpr int kRounds = 6;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed = left ^ (Mix(seed_ ^ Mix(right + (round << 56))) & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

int64_t ShuffledOrder::operator[](int64_t index) const {
  uint64_t value = index;
  do {
    value = Permute(value);
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

}  // namespace hookline
