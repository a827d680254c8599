#include "server/recording/shard.h"

#include <xxhash.h>

#include <algorithm>
#include <new>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline {
namespace {

using Json = nlohmann::ordered_json;

// Aligns the values for readers that map the file.
constexpr size_t kHeaderAlignment = 64;
// Far more than the header of any manifest's hook points.
constexpr int64_t kMaxHeaderBytes = int64_t{1} << 40;
// Read and hashed at a time, so that it stays in the processor's cache.
constexpr int64_t kPieceBytes = int64_t{256} << 10;

// Rows with a scale or indices are bytes to safetensors.
const char* SafetensorsDtype(const RowLayout& layout) {
  if (!layout.is_plain()) return "U8";
  switch (layout.dtype) {
    case Dtype::kFloat32:
      return "F32";
    case Dtype::kBFloat16:
      return "BF16";
    case Dtype::kFloat16:
      return "F16";
    case Dtype::kFloat8E4M3:
    case Dtype::kInt8:
      break;
  }
  return "U8";
}

}  // namespace

absl::StatusOr<ShardLayout> LayOutShard(const Manifest& manifest, int64_t first_row, int64_t end_row) {
  ShardLayout layout;
  layout.first_row = first_row;
  layout.end_row = end_row;
  Json header;
  header["__metadata__"] = Json{{"format", "hookline-recording"},
                                {"version", "1"},
                                {"fingerprint", manifest.fingerprint},
                                {"first_row", absl::StrCat(first_row)}};
  CheckedInt64 offset = 0;
  const auto add = [&](const std::string& name, const char* dtype, int64_t rows, int64_t width, int64_t row_bytes) {
    const CheckedInt64 end = offset + CheckedInt64(rows) * row_bytes;
    if (!end.value().has_value()) {
      offset = end;
      return;
    }
    layout.tensors.push_back({rows, row_bytes, *offset.value()});
    if (rows == 0) return;
    Json shape = Json::array({rows});
    if (width > 0) shape.push_back(width);
    header[name] = Json{{"dtype", dtype}, {"shape", shape}, {"data_offsets", {*offset.value(), *end.value()}}};
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
  std::string json = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  json.append((kHeaderAlignment - (8 + json.size()) % kHeaderAlignment) % kHeaderAlignment, ' ');
  for (int byte = 0; byte < 8; ++byte) layout.header.push_back(static_cast<char>(json.size() >> (8 * byte) & 0xff));
  layout.header += json;
  for (ShardTensor& tensor : layout.tensors) tensor.offset += static_cast<int64_t>(layout.header.size());
  layout.file_bytes = static_cast<int64_t>(layout.header.size()) + *offset.value();
  return layout;
}

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_.get());
}

void Xxh3::Reset() { XXH3_128bits_reset(state_.get()); }

void Xxh3::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Xxh3::Update(absl::Span<const uint8_t> bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }

Xxh3::Digest Xxh3::digest() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
  Digest digest;
  std::copy(std::begin(canonical.digest), std::end(canonical.digest), digest.begin());
  return digest;
}

std::string Xxh3::hex() const {
  const Digest bytes = digest();
  return absl::BytesToHexString({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

ShardCheck::ShardCheck(std::shared_ptr<const ReadableFile> file, const Manifest& manifest, const ShardInfo& shard)
    : file_(std::move(file)), shard_(shard), layout_(LayOutShard(manifest, shard.first_row, shard.end_row())) {}

absl::Status ShardCheck::Begin() {
  RETURN_IF_ERROR(layout_.status());
  ASSIGN_OR_RETURN(facts_, file_->Facts());
  if (facts_.bytes != shard_.bytes || shard_.bytes != layout_->file_bytes) {
    return absl::DataLossError(absl::StrCat("of ", facts_.bytes, " bytes; the manifest says ", shard_.bytes,
                                            ", its rows take ", layout_->file_bytes));
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
