#include "client/cpp/capture_response.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/streaming_copy.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// Wire types of the protobuf encoding that a proto3 message uses.
constexpr int kVarint = 0;
constexpr int kFixed64 = 1;
constexpr int kLengthDelimited = 2;
constexpr int kFixed32 = 5;

// Walks through slices as if they were one piece of memory: gRPC cuts messages anywhere, also inside a tag.
class Cursor {
 public:
  explicit Cursor(absl::Span<const grpc::Slice> slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices_) left_ += static_cast<int64_t>(slice.size());
  }

  // Returns the number of bytes that follow.
  int64_t left() const { return left_; }

  // Calls `visit(data, bytes)` for the next `bytes` bytes, piece by piece. Returns false if fewer follow.
  template <typename Visit>
  bool Take(int64_t bytes, Visit visit) {
    if (bytes < 0 || bytes > left_) return false;
    left_ -= bytes;
    while (bytes > 0) {
      const grpc::Slice& slice = slices_[slice_];
      const int64_t here = std::min<int64_t>(bytes, static_cast<int64_t>(slice.size()) - offset_);
      if (here > 0) visit(slice.begin() + offset_, here);
      bytes -= here;
      offset_ += here;
      if (offset_ == static_cast<int64_t>(slice.size())) {
        ++slice_;
        offset_ = 0;
      }
    }
    return true;
  }

  bool Append(int64_t bytes, std::string* out) {
    return Take(bytes, [out](const uint8_t* data, int64_t size) {
      out->append(reinterpret_cast<const char*>(data), static_cast<size_t>(size));
    });
  }

  // Reads a varint and appends its bytes to `raw`.
  bool ReadVarint(uint64_t* value, std::string* raw) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      uint8_t byte = 0;
      if (!Take(1, [&byte](const uint8_t* data, int64_t) { byte = *data; })) return false;
      raw->push_back(static_cast<char>(byte));
      if (shift == 63 && byte > 1) return false;
      *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }

 private:
  absl::Span<const grpc::Slice> slices_;
  size_t slice_ = 0;
  int64_t offset_ = 0;
  int64_t left_ = 0;
};

absl::Status Malformed(absl::string_view what) {
  return absl::InternalError(absl::StrCat("the server sent a malformed message: ", what));
}

struct Tag {
  uint32_t number;
  int wire_type;
};

absl::StatusOr<Tag> ReadTag(Cursor& cursor, std::string* raw) {
  uint64_t tag;
  if (!cursor.ReadVarint(&tag, raw)) return Malformed("cut or oversized field tag");
  if (tag > UINT32_MAX || tag >> 3 == 0) return Malformed("field number out of range");
  return Tag{static_cast<uint32_t>(tag >> 3), static_cast<int>(tag & 7)};
}

// Appends the field's value, as it is encoded, to `raw`.
absl::Status TakeValue(Cursor& cursor, Tag tag, std::string* raw) {
  uint64_t value;
  bool whole = false;
  switch (tag.wire_type) {
    case kVarint:
      whole = cursor.ReadVarint(&value, raw);
      break;
    case kFixed64:
      whole = cursor.Append(8, raw);
      break;
    case kFixed32:
      whole = cursor.Append(4, raw);
      break;
    case kLengthDelimited:
      whole = cursor.ReadVarint(&value, raw) && value <= INT64_MAX && cursor.Append(static_cast<int64_t>(value), raw);
      break;
    default:
      return Malformed(absl::StrCat("wire type ", tag.wire_type, " in field ", tag.number));
  }
  return whole ? absl::OkStatus() : Malformed(absl::StrCat("field ", tag.number, " is cut"));
}

// Reads an ActivationChunk of `bytes` bytes; its `data` becomes `pieces`, which point into the cursor's slices.
absl::Status TakeChunk(Cursor& cursor, int64_t bytes, v1::ActivationChunk* header,
                       std::vector<absl::Span<const uint8_t>>* pieces) {
  const int64_t left_after = cursor.left() - bytes;
  std::string encoded_header;
  while (cursor.left() > left_after) {
    const size_t field_start = encoded_header.size();
    ASSIGN_OR_RETURN(Tag tag, ReadTag(cursor, &encoded_header));
    if (tag.number != v1::ActivationChunk::kDataFieldNumber || tag.wire_type != kLengthDelimited) {
      RETURN_IF_ERROR(TakeValue(cursor, tag, &encoded_header));
      continue;
    }
    uint64_t data_bytes;
    if (!cursor.ReadVarint(&data_bytes, &encoded_header)) return Malformed("the length of `data` is cut");
    encoded_header.resize(field_start);
    pieces->clear();
    if (data_bytes > static_cast<uint64_t>(cursor.left()) ||
        !cursor.Take(static_cast<int64_t>(data_bytes), [pieces](const uint8_t* data, int64_t size) {
          pieces->emplace_back(data, static_cast<size_t>(size));
        })) {
      return Malformed(absl::StrCat("`data` of ", data_bytes, " bytes is cut"));
    }
  }
  if (cursor.left() != left_after) return Malformed("a field reaches beyond its chunk");
  if (!header->ParseFromString(encoded_header)) return Malformed("the fields of a chunk cannot be parsed");
  return absl::OkStatus();
}

}  // namespace

Chunk::Chunk(v1::ActivationChunk header, std::vector<grpc::Slice> slices, std::vector<absl::Span<const uint8_t>> pieces)
    : header_(std::move(header)), slices_(std::move(slices)), pieces_(std::move(pieces)) {
  for (const auto& piece : pieces_) data_bytes_ += static_cast<int64_t>(piece.size());
}

void Chunk::SetData(absl::Span<const uint8_t> data, std::shared_ptr<const void> memory) {
  slices_.clear();
  pieces_ = {data};
  data_bytes_ = static_cast<int64_t>(data.size());
  memory_ = std::move(memory);
}

void Chunk::CopyData(int64_t offset, int64_t bytes, void* destination) const {
  auto* out = static_cast<uint8_t*>(destination);
  for (const auto& piece : pieces_) {
    if (bytes == 0) return;
    const auto size = static_cast<int64_t>(piece.size());
    if (offset >= size) {
      offset -= size;
      continue;
    }
    const int64_t here = std::min(bytes, size - offset);
    StreamingCopy(out, piece.data() + offset, static_cast<size_t>(here));
    out += here;
    bytes -= here;
    offset = 0;
  }
}

void Chunk::Place(int64_t first_row, int64_t more_sequences) {
  header_.set_first_row(first_row);
  header_.clear_resume_token();
  for (int64_t& sequence : *header_.mutable_sequence()) sequence += more_sequences;
}

void Chunk::KeepRows(int32_t rows) {
  if (rows == header_.rows()) return;
  int64_t left = data_bytes_ / header_.rows() * rows;
  data_bytes_ = left;
  for (auto& piece : pieces_) {
    piece = piece.first(static_cast<size_t>(std::min<int64_t>(left, static_cast<int64_t>(piece.size()))));
    left -= static_cast<int64_t>(piece.size());
  }
  header_.set_rows(rows);
  // Without provenance the columns are empty.
  const auto cut = [rows](auto* column) {
    while (column->size() > rows) column->RemoveLast();
  };
  cut(header_.mutable_sequence());
  cut(header_.mutable_position());
  cut(header_.mutable_token_id());
  cut(header_.mutable_token_text());
}

absl::StatusOr<CaptureEvent> ParseCaptureResponse(std::vector<grpc::Slice> slices) {
  Cursor cursor(slices);
  uint32_t kind = 0;
  std::string encoded;
  v1::ActivationChunk header;
  std::vector<absl::Span<const uint8_t>> pieces;
  std::string skipped;
  while (cursor.left() > 0) {
    skipped.clear();
    ASSIGN_OR_RETURN(Tag tag, ReadTag(cursor, &skipped));
    const bool is_kind = tag.wire_type == kLengthDelimited && (tag.number == v1::CaptureResponse::kStartedFieldNumber ||
                                                               tag.number == v1::CaptureResponse::kChunkFieldNumber ||
                                                               tag.number == v1::CaptureResponse::kSummaryFieldNumber);
    if (!is_kind) {
      RETURN_IF_ERROR(TakeValue(cursor, tag, &skipped));
      continue;
    }
    if (kind != 0) return Malformed("more than one of `started`, `chunk` and `summary`");
    kind = tag.number;
    uint64_t bytes;
    if (!cursor.ReadVarint(&bytes, &skipped) || bytes > static_cast<uint64_t>(cursor.left())) {
      return Malformed(absl::StrCat("field ", tag.number, " is cut"));
    }
    if (kind == v1::CaptureResponse::kChunkFieldNumber) {
      RETURN_IF_ERROR(TakeChunk(cursor, static_cast<int64_t>(bytes), &header, &pieces));
    } else {
      cursor.Append(static_cast<int64_t>(bytes), &encoded);
    }
  }
  if (kind == v1::CaptureResponse::kChunkFieldNumber) {
    return CaptureEvent(std::in_place_type<Chunk>, std::move(header), std::move(slices), std::move(pieces));
  }
  if (kind == v1::CaptureResponse::kStartedFieldNumber) {
    v1::CaptureStarted started;
    if (!started.ParseFromString(encoded)) return Malformed("`started` cannot be parsed");
    return CaptureEvent(std::move(started));
  }
  if (kind == v1::CaptureResponse::kSummaryFieldNumber) {
    v1::CaptureSummary summary;
    if (!summary.ParseFromString(encoded)) return Malformed("`summary` cannot be parsed");
    return CaptureEvent(std::move(summary));
  }
  return Malformed("none of `started`, `chunk` and `summary`");
}

}  // namespace hookline::client
