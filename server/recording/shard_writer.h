// Writes one shard: every tensor grows at its own place in a temporary file, so that no row is held in memory.
#ifndef HOOKLINE_SERVER_RECORDING_SHARD_WRITER_H_
#define HOOKLINE_SERVER_RECORDING_SHARD_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"
#include "server/recording/shard.h"

namespace hookline {

// One thread at a time. The directory must outlive the writer.
class ShardWriter {
 public:
  // Begins a shard for the rows from `first_row` up to the next multiple of manifest.shard_rows or the largest budget,
  // whichever comes first.
  static absl::StatusOr<std::unique_ptr<ShardWriter>> Create(Directory& directory, const Manifest& manifest,
                                                             int64_t first_row);

  int64_t first_row() const { return layout_.first_row; }

  // Returns how many more rows fit into tensor `tensor`.
  int64_t RowsLeft(int tensor) const { return layout_.tensors[tensor].rows - parts_[tensor].rows; }
  bool full() const { return rows_left_ == 0; }

  // Appends whole rows, at most RowsLeft, to a tensor; a row can be split between pieces.
  absl::Status Append(int tensor, int64_t rows, absl::Span<const absl::Span<const uint8_t>> pieces);

  // Keeps the first `rows` rows, at least 1, which every tensor must have received, syncs the file to the disk and
  // gives it its name. An error leaves at most leftovers in the directory.
  absl::StatusOr<ShardInfo> Finish(const Manifest& manifest, int64_t rows);

  // Removes the temporary file.
  absl::Status Discard();

 private:
  struct Part {
    int64_t rows = 0;
    int64_t bytes = 0;
    Xxh3 hash;
  };

  ShardWriter(Directory& directory, ShardLayout layout, std::string temporary, std::unique_ptr<WritableFile> file);

  absl::StatusOr<ShardInfo> FinishShorter(const Manifest& manifest, int64_t rows);

  Directory& directory_;
  const ShardLayout layout_;
  const std::string temporary_;
  std::unique_ptr<WritableFile> file_;
  std::vector<Part> parts_;
  int64_t rows_left_ = 0;  // over all tensors
};

// Appends the first `rows` rows of every tensor of a complete shard file to `writer`, which begins at the same row.
absl::Status CopyRows(const ShardLayout& layout, const ReadableFile& file, int64_t rows, ShardWriter& writer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_SHARD_WRITER_H_
