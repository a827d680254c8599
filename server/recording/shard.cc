#include "server/recording/shard.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/formats/safetensors.h"

namespace hookline {
namespace {

// The header for any manifest takes far less.
constexpr int64_t kMaxHeaderBytes = int64_t{1} << 40;
// This much is read and hashed at a time, so that it stays in the processor's cache.
constexpr int64_t kPieceBytes = int64_t{256} << 10;

absl::StatusOr<ShardLayout> LayOut(const Manifest& manifest, int64_t first_row, int64_t end_row,
                                   int64_t header_first_row) {
  ShardLayout layout;
  layout.first_row = first_row;
  layout.end_row = end_row;
  SafetensorsHeader header({{"format", "hookline-recording"},
                            {"version", "1"},
                            {"fingerprint", manifest.fingerprint},
                            {"first_row", absl::StrCat(header_first_row)}});
  CheckedInt64 offset = 0;
  const auto add = [&](const std::string& name, absl::string_view dtype, int64_t rows, int64_t width,
                       int64_t row_bytes) {
    const CheckedInt64 end = offset + CheckedInt64(rows) * row_bytes;
    if (!end.value().has_value()) {
      offset = end;
      return;
    }
    layout.tensors.push_back({rows, row_bytes, *offset.value()});
    if (rows == 0) return;
    std::vector<int64_t> shape = {rows};
    if (width > 0) shape.push_back(width);
    header.Add(name, dtype, shape, *offset.value(), *end.value());
    offset = end;
  };
  const int64_t rows = end_row - first_row;
  add("provenance/sequence", "I64", rows, 0, 8);
  add("provenance/token_id", "I64", rows, 0, 8);
  add("provenance/position", "I32", rows, 0, 4);
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) {
    const RecordedHookPoint& point = manifest.hook_points[i];
    const RowLayout row = manifest.LayoutOf(static_cast<int>(i));
    const int64_t kept = std::clamp<int64_t>(point.max_activations - first_row, 0, rows);
    add(point.name, SafetensorsDtype(row), kept, row.is_plain() ? point.width : row.bytes(), row.bytes());
  }
  if (!(offset + kMaxHeaderBytes).value().has_value()) {
    return absl::DataLossError(absl::StrCat("rows ", first_row, " to ", end_row,
                                            ": take more bytes than any file has at the widths of the hook points"));
  }
  layout.header = header.Encode();
  for (ShardTensor& tensor : layout.tensors) tensor.offset += static_cast<int64_t>(layout.header.size());
  layout.file_bytes = static_cast<int64_t>(layout.header.size()) + *offset.value();
  return layout;
}

}  // namespace

absl::StatusOr<ShardLayout> LayOutShard(const Manifest& manifest, int64_t first_row, int64_t end_row) {
  return LayOut(manifest, first_row, end_row, first_row);
}

absl::StatusOr<ShardLayout> LayOutShard(const Manifest& manifest, const ShardInfo& shard) {
  return LayOut(manifest, shard.first_row, shard.end_row(), shard.header_first_row);
}

ShardCheck::ShardCheck(std::shared_ptr<const ReadableFile> file, const Manifest& manifest, const ShardInfo& shard)
    : file_(std::move(file)), shard_(shard), layout_(LayOutShard(manifest, shard)) {}

absl::Status ShardCheck::Begin() {
  RETURN_IF_ERROR(layout_.status());
  ASSIGN_OR_RETURN(facts_, file_->Facts());
  if (facts_.bytes != shard_.bytes || shard_.bytes != layout_->file_bytes) {
    return absl::DataLossError(absl::StrCat("has ", facts_.bytes, " bytes; the manifest says ", shard_.bytes,
                                            ", and its rows take ", layout_->file_bytes));
  }
  std::string header(layout_->header.size(), '\0');
  const absl::Span<uint8_t> bytes(reinterpret_cast<uint8_t*>(header.data()), header.size());
  RETURN_IF_ERROR(file_->ReadAt(0, bytes));
  if (header != layout_->header) return absl::DataLossError("the header is not the one of the manifest's rows");
  part_hash_.Update(bytes);
  whole_hash_.Update(part_hash_.digest());
  part_hash_.Reset();
  part_ = 1;
  buffer_.resize(std::min(kPieceBytes, shard_.bytes));
  return absl::OkStatus();
}

absl::StatusOr<bool> ShardCheck::Advance() {
  if (part_ == 0) RETURN_IF_ERROR(Begin());
  for (int64_t read = 0; part_ <= layout_->tensors.size();) {
    const ShardTensor& tensor = layout_->tensors[part_ - 1];
    const int64_t left = tensor.bytes() - part_bytes_;
    if (left == 0) {
      if (tensor.rows > 0) whole_hash_.Update(part_hash_.digest());
      part_hash_.Reset();
      part_bytes_ = 0;
      ++part_;
      continue;
    }
    if (read >= kSliceBytes) return false;
    const absl::Span<uint8_t> piece = absl::MakeSpan(buffer_).first(std::min<int64_t>(left, buffer_.size()));
    RETURN_IF_ERROR(file_->ReadAt(tensor.offset + part_bytes_, piece));
    part_hash_.Update(piece);
    part_bytes_ += static_cast<int64_t>(piece.size());
    read += static_cast<int64_t>(piece.size());
  }
  const std::string found = whole_hash_.hex();
  if (found == shard_.xxh3) return true;
  return absl::DataLossError(absl::StrCat("checksum ", found, "; the manifest says ", Quoted(shard_.xxh3)));
}

}  // namespace hookline
