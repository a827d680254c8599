#include "server/recording/shard_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// Copies go in pieces that stay in the processor's cache while they are hashed and written.
constexpr int64_t kCopyBytes = int64_t{1} << 20;

absl::Status RemoveIfThere(Directory& directory, absl::string_view name) {
  absl::Status status = directory.Remove(name);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShardWriter>> ShardWriter::Create(Directory& directory, const Manifest& manifest,
                                                                 int64_t first_row) {
  const int64_t end_row = std::min(first_row + manifest.shard_rows, manifest.max_rows());
  ASSIGN_OR_RETURN(ShardLayout layout, LayOutShard(manifest, first_row, end_row));
  std::string temporary = absl::StrCat(ShardFileName(first_row, end_row), kTemporarySuffix);
  RETURN_IF_ERROR(RemoveIfThere(directory, temporary));
  ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, directory.Create(temporary));
  return std::unique_ptr<ShardWriter>(
      new ShardWriter(directory, std::move(layout), std::move(temporary), std::move(file)));
}

ShardWriter::ShardWriter(Directory& directory, ShardLayout layout, std::string temporary,
                         std::unique_ptr<WritableFile> file)
    : directory_(directory),
      layout_(std::move(layout)),
      temporary_(std::move(temporary)),
      file_(std::move(file)),
      parts_(layout_.tensors.size()) {
  for (const ShardTensor& tensor : layout_.tensors) rows_left_ += tensor.rows;
}

absl::Status ShardWriter::Append(int tensor, int64_t rows, absl::Span<const absl::Span<const uint8_t>> pieces) {
  Part& part = parts_[tensor];
  for (absl::Span<const uint8_t> piece : pieces) {
    while (!piece.empty()) {
      const auto now = piece.subspan(0, kCopyBytes);
      part.hash.Update(now);
      RETURN_IF_ERROR(file_->WriteAt(layout_.tensors[tensor].offset + part.bytes, now));
      part.bytes += static_cast<int64_t>(now.size());
      piece.remove_prefix(now.size());
    }
  }
  part.rows += rows;
  rows_left_ -= rows;
  return absl::OkStatus();
}

absl::StatusOr<ShardInfo> ShardWriter::Finish(const Manifest& manifest, int64_t rows) {
  if (layout_.first_row + rows < layout_.end_row) return FinishShorter(manifest, rows);
  const absl::Span<const uint8_t> header(reinterpret_cast<const uint8_t*>(layout_.header.data()),
                                         layout_.header.size());
  RETURN_IF_ERROR(file_->WriteAt(0, header));
  RETURN_IF_ERROR(file_->Sync());
  file_.reset();
  ShardInfo info;
  info.file = ShardFileName(layout_.first_row, layout_.end_row);
  info.first_row = info.header_first_row = layout_.first_row;
  info.rows = rows;
  info.bytes = layout_.file_bytes;
  Xxh3 header_hash;
  header_hash.Update(header);
  Xxh3 whole;
  whole.Update(header_hash.digest());
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (layout_.tensors[i].rows > 0) whole.Update(parts_[i].hash.digest());
  }
  info.xxh3 = whole.hex();
  RETURN_IF_ERROR(directory_.Rename(temporary_, info.file));
  RETURN_IF_ERROR(directory_.Sync());
  return info;
}

// safetensors allows no gaps: a file that ends before it is full is copied into one of the right size.
absl::StatusOr<ShardInfo> ShardWriter::FinishShorter(const Manifest& manifest, int64_t rows) {
  file_.reset();
  const int64_t end_row = layout_.first_row + rows;
  ASSIGN_OR_RETURN(ShardLayout layout, LayOutShard(manifest, layout_.first_row, end_row));
  std::string temporary = absl::StrCat(ShardFileName(layout_.first_row, end_row), kTemporarySuffix);
  RETURN_IF_ERROR(RemoveIfThere(directory_, temporary));
  ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, directory_.Create(temporary));
  ShardWriter shorter(directory_, std::move(layout), std::move(temporary), std::move(file));
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> whole, directory_.OpenFile(temporary_));
    RETURN_IF_ERROR(CopyRows(layout_, *whole, rows, shorter));
  }
  ASSIGN_OR_RETURN(ShardInfo info, shorter.Finish(manifest, rows));
  RETURN_IF_ERROR(directory_.Remove(temporary_));
  return info;
}

absl::Status ShardWriter::Discard() {
  file_.reset();
  return directory_.Remove(temporary_);
}

absl::Status CopyRows(const ShardLayout& layout, const ReadableFile& file, int64_t rows, ShardWriter& writer) {
  std::vector<uint8_t> buffer;
  for (size_t i = 0; i < layout.tensors.size(); ++i) {
    const ShardTensor& tensor = layout.tensors[i];
    const int64_t kept = std::min(rows, tensor.rows);
    if (kept == 0) continue;
    const int64_t rows_at_once = std::clamp<int64_t>(kCopyBytes / tensor.row_bytes, 1, kept);
    buffer.resize(rows_at_once * tensor.row_bytes);
    for (int64_t row = 0; row < kept; row += rows_at_once) {
      const int64_t now = std::min(rows_at_once, kept - row);
      const absl::Span<uint8_t> piece = absl::MakeSpan(buffer).first(now * tensor.row_bytes);
      RETURN_IF_ERROR(file.ReadAt(tensor.offset + row * tensor.row_bytes, piece));
      RETURN_IF_ERROR(writer.Append(static_cast<int>(i), now, {piece}));
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline
