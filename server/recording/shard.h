// The layout of a shard, and its checksum; see FORMAT.md. The manifest and the rows determine the layout. Writer and
// reader both compute it, so that a reader need not trust a header.
#ifndef HOOKLINE_SERVER_RECORDING_SHARD_H_
#define HOOKLINE_SERVER_RECORDING_SHARD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"
#include "server/base/hash.h"
#include "server/recording/manifest.h"

namespace hookline {

// The tensors that come before those of the hook points.
enum ProvenanceTensor { kSequenceTensor, kTokenIdTensor, kPositionTensor, kProvenanceTensors };

// The size of a row's provenance in a shard.
inline constexpr int64_t kProvenanceRowBytes = 8 + 8 + 4;

struct ShardTensor {
  int64_t rows = 0;  // 0: the file does not have the tensor
  int64_t row_bytes = 0;
  int64_t offset = 0;  // in the file

  int64_t bytes() const { return rows * row_bytes; }
};

struct ShardLayout {
  int64_t first_row = 0;
  int64_t end_row = 0;
  std::string header;  // with its length and padding
  // First the kProvenanceTensors, then one tensor for each hook point of the manifest.
  std::vector<ShardTensor> tensors;
  int64_t file_bytes = 0;
};

// Returns the layout of a shard. `first_row` is a multiple of manifest.shard_rows; `end_row` is above it and at most
// manifest.max_rows(). DATA_LOSS: this many rows of these widths take more bytes than any file has.
absl::StatusOr<ShardLayout> LayOutShard(const Manifest& manifest, int64_t first_row, int64_t end_row);
// Returns the layout of a shard that the manifest names.
absl::StatusOr<ShardLayout> LayOutShard(const Manifest& manifest, const ShardInfo& shard);

// Compares a shard's file with the manifest, slice by slice, so that no thread is busy for a whole shard. One thread at
// a time.
class ShardCheck {
 public:
  ShardCheck(std::shared_ptr<const ReadableFile> file, const Manifest& manifest, const ShardInfo& shard);

  // Reads at most kSliceBytes more. Returns true when everything is read and length, header and checksum are those of
  // the manifest. DATA_LOSS says what is wrong, without naming the shard. Do not call it again after either.
  absl::StatusOr<bool> Advance();

  // Returns the file's facts before its first byte was read.
  const FileFacts& facts() const { return facts_; }

  // A slice takes about one millisecond of processor time and a few of the disk's time.
  static constexpr int64_t kSliceBytes = int64_t{4} << 20;

 private:
  absl::Status Begin();

  const std::shared_ptr<const ReadableFile> file_;
  const ShardInfo shard_;
  absl::StatusOr<ShardLayout> layout_;
  FileFacts facts_;
  std::vector<uint8_t> buffer_;
  size_t part_ = 0;         // 0: before the header; n: tensor n - 1
  int64_t part_bytes_ = 0;  // how much of that tensor has been read
  Xxh3 part_hash_;
  Xxh3 whole_hash_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_SHARD_H_
