#include "server/service/wire/capture_response_encoder.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/slice.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/service/wire/chunk_values.h"
#include "server/service/wire/request_conversion.h"
#ifndef NDEBUG
#include "spdlog/spdlog.h"
#endif

namespace hookline {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;
using ChunkFields = v1::ActivationChunk;

grpc::ByteBuffer ToByteBuffer(const v1::CaptureResponse& response) {
  std::string encoded = response.SerializeAsString();
  grpc::Slice slice(encoded);
  return grpc::ByteBuffer(&slice, 1);
}

// Returns the first `rows` entries of a column of the chunk's provenance.
template <typename T>
absl::Span<const T> Column(const std::vector<T>& column, int64_t rows) {
  return absl::MakeSpan(column).first(static_cast<size_t>(rows));
}

template <typename T>
uint64_t PackedBytes(absl::Span<const T> values) {
  uint64_t bytes = 0;
  // Negative numbers are encoded as their 64 bits, which the conversion gives.
  for (T value : values) bytes += CodedOutputStream::VarintSize64(static_cast<uint64_t>(value));
  return bytes;
}

// Writes the fields of an ActivationChunk, without those that hold their default, as protobuf does. It takes two passes
// over the same calls: the first, without a target, only counts.
class FieldWriter {
 public:
  FieldWriter() = default;
  explicit FieldWriter(uint8_t* target) : target_(target) {}

  uint64_t bytes() const { return bytes_; }

  void Varint(int field, uint64_t value) {
    if (value != 0) PresentVarint(field, value);
  }

  // Writes the field also where it is zero.
  void PresentVarint(int field, uint64_t value) {
    Tag(field, WireFormatLite::WIRETYPE_VARINT);
    Raw(value);
  }

  void Bytes(int field, absl::string_view value) {
    if (value.empty()) return;
    Length(field, value.size());
    if (target_ != nullptr) std::memcpy(target_ + bytes_, value.data(), value.size());
    bytes_ += value.size();
  }

  template <typename T>
  void Packed(int field, absl::Span<const T> values) {
    if (values.empty()) return;
    Length(field, PackedBytes(values));
    for (T value : values) Raw(static_cast<uint64_t>(value));
  }

  // Writes a repeated field of strings, including empty ones.
  void Texts(int field, const TokenTable& table, absl::Span<const uint32_t> ids) {
    for (uint32_t id : ids) {
      const absl::string_view text = table.Text(id);
      Length(field, text.size());
      if (target_ != nullptr) std::memcpy(target_ + bytes_, text.data(), text.size());
      bytes_ += text.size();
    }
  }

  // Writes tag and length of a field whose `bytes` bytes are written elsewhere.
  void Length(int field, uint64_t bytes) {
    Tag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
    Raw(bytes);
  }

 private:
  void Tag(int field, WireFormatLite::WireType type) { Raw(WireFormatLite::MakeTag(field, type)); }

  void Raw(uint64_t value) {
    if (target_ != nullptr) CodedOutputStream::WriteVarint64ToArray(value, target_ + bytes_);
    bytes_ += CodedOutputStream::VarintSize64(value);
  }

  uint8_t* target_ = nullptr;
  uint64_t bytes_ = 0;
};

// Writes every field of the chunk in the order of their numbers, up to where the values of `data` begin.
void WriteFieldsBeforeData(const CaptureStarted& started, const Chunk& chunk, uint64_t data_bytes,
                           std::optional<int64_t> data_offset, FieldWriter& writer) {
  const CaptureStarted::HookPoint& hook_point = started.hook_points[chunk.hook_point];
  writer.Bytes(ChunkFields::kHookPointFieldNumber, hook_point.name);
  writer.Varint(ChunkFields::kFirstRowFieldNumber, static_cast<uint64_t>(chunk.first_row));
  writer.Varint(ChunkFields::kRowsFieldNumber, static_cast<uint64_t>(chunk.rows));
  writer.Varint(ChunkFields::kWidthFieldNumber, static_cast<uint64_t>(hook_point.width));
  writer.Varint(ChunkFields::kDtypeFieldNumber, static_cast<uint64_t>(ToProto(started.dtype)));
  if (chunk.provenance != nullptr) {
    writer.Packed(ChunkFields::kSequenceFieldNumber, Column(chunk.provenance->sequence, chunk.rows));
    writer.Packed(ChunkFields::kPositionFieldNumber, Column(chunk.provenance->position, chunk.rows));
    writer.Packed(ChunkFields::kTokenIdFieldNumber, Column(chunk.provenance->token_id, chunk.rows));
  }
  writer.Bytes(ChunkFields::kResumeTokenFieldNumber, chunk.resume_token);
  if (data_offset.has_value()) {
    writer.PresentVarint(ChunkFields::kDataOffsetFieldNumber, static_cast<uint64_t>(*data_offset));
  }
  if (chunk.provenance != nullptr && started.text.tokens != nullptr) {
    writer.Texts(ChunkFields::kTokenTextFieldNumber, *started.text.tokens,
                 Column(chunk.provenance->token_id, chunk.rows));
  }
  writer.Varint(ChunkFields::kTopKFieldNumber, static_cast<uint64_t>(started.top_k));
  if (data_bytes > 0) writer.Length(ChunkFields::kDataFieldNumber, data_bytes);
}

// Returns the chunk as protobuf's message, without its values.
v1::CaptureResponse ChunkByProtobuf(const CaptureStarted& started, const Chunk& chunk,
                                    std::optional<int64_t> data_offset) {
  v1::CaptureResponse response;
  v1::ActivationChunk& out = *response.mutable_chunk();
  const CaptureStarted::HookPoint& hook_point = started.hook_points[chunk.hook_point];
  out.set_hook_point(hook_point.name);
  out.set_first_row(chunk.first_row);
  out.set_rows(static_cast<int32_t>(chunk.rows));
  out.set_width(static_cast<int32_t>(hook_point.width));
  out.set_dtype(ToProto(started.dtype));
  if (chunk.provenance != nullptr) {
    const Provenance& from = *chunk.provenance;
    *out.mutable_sequence() = {from.sequence.begin(), from.sequence.begin() + chunk.rows};
    *out.mutable_position() = {from.position.begin(), from.position.begin() + chunk.rows};
    *out.mutable_token_id() = {from.token_id.begin(), from.token_id.begin() + chunk.rows};
    for (int64_t row = 0; started.text.tokens != nullptr && row < chunk.rows; ++row) {
      out.add_token_text(std::string(started.text.tokens->Text(from.token_id[row])));
    }
  }
  out.set_resume_token(chunk.resume_token);
  if (data_offset.has_value()) out.set_data_offset(*data_offset);
  out.set_top_k(static_cast<int32_t>(started.top_k));
  return response;
}

std::string GatherData(const Chunk& chunk) {
  std::string data;
  for (const SlabSpan& span : chunk.data) {
    data.append(reinterpret_cast<const char*>(span.data()), static_cast<size_t>(span.bytes));
  }
  return data;
}

#ifndef NDEBUG
void CheckAgainstProtobuf(const CaptureStarted& started, const Chunk& chunk, std::optional<int64_t> data_offset,
                          const grpc::ByteBuffer& message) {
  v1::CaptureResponse response = ChunkByProtobuf(started, chunk, data_offset);
  if (!data_offset.has_value()) response.mutable_chunk()->set_data(GatherData(chunk));
  std::vector<grpc::Slice> slices;
  std::string encoded;
  if (message.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) {
      encoded.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
  }
  if (encoded != response.SerializeAsString()) {
    spdlog::critical("a chunk of {} is not encoded as protobuf would encode it", response.chunk().hook_point());
    std::abort();
  }
}
#endif

v1::StopReason ToProto(StopReason reason) {
  switch (reason) {
    case StopReason::kBudget:
      return v1::STOP_REASON_BUDGET;
    case StopReason::kSourceEnded:
      return v1::STOP_REASON_SOURCE_ENDED;
    case StopReason::kCancelled:
      return v1::STOP_REASON_CANCELLED;
    case StopReason::kShuttingDown:
      return v1::STOP_REASON_SHUTTING_DOWN;
    case StopReason::kError:
      return v1::STOP_REASON_ERROR;
  }
  return v1::STOP_REASON_UNSPECIFIED;
}

}  // namespace

grpc::ByteBuffer EncodeStarted(const CaptureStarted& started, int64_t shared_memory_bytes) {
  v1::CaptureResponse response;
  v1::CaptureStarted& out = *response.mutable_started();
  out.set_model(started.model);
  out.set_fingerprint(started.fingerprint);
  for (const CaptureStarted::HookPoint& hook_point : started.hook_points) {
    v1::HookPointGrant& grant = *out.add_hook_points();
    grant.set_hook_point(hook_point.name);
    grant.set_width(static_cast<int32_t>(hook_point.width));
    grant.set_max_activations(hook_point.max_activations);
    grant.set_clipped(hook_point.clipped);
  }
  out.set_dtype(ToProto(started.dtype));
  out.set_max_message_bytes(static_cast<int32_t>(started.max_message_bytes));
  out.set_next_sequence(started.next_sequence);
  out.set_window_bytes(started.window_bytes);
  out.set_resume_token(started.resume_token);
  out.set_shared_memory_bytes(shared_memory_bytes);
  out.set_top_k(static_cast<int32_t>(started.top_k));
  for (const SpecialToken& token : started.text.added) *out.add_added_special_tokens() = ToProto(token);
  out.set_tokenizer_warning(started.text.warning);
  out.set_capture_id(started.capture_id);
  out.set_batch_tokens(started.batch_tokens);
  return ToByteBuffer(response);
}

grpc::ByteBuffer EncodeChunk(const CaptureStarted& started, Encoding encoding, const Chunk& chunk,
                             std::optional<int64_t> data_offset) {
  if (encoding == Encoding::kValues) {
    v1::CaptureResponse response = ChunkByProtobuf(started, chunk, std::nullopt);
    const RowLayout layout{started.dtype, started.hook_points[chunk.hook_point].width, started.top_k};
    AppendAsNumbers(GatherData(chunk), layout, response.mutable_chunk());
    return ToByteBuffer(response);
  }

  std::vector<SlabSpan> data;
  if (!data_offset.has_value()) data = chunk.data;
  uint64_t data_bytes = 0;
  for (const SlabSpan& span : data) data_bytes += static_cast<uint64_t>(span.bytes);
  FieldWriter counted;
  WriteFieldsBeforeData(started, chunk, data_bytes, data_offset, counted);
  const uint64_t chunk_bytes = counted.bytes() + data_bytes;
  FieldWriter envelope;
  envelope.Length(v1::CaptureResponse::kChunkFieldNumber, chunk_bytes);

  // This is legal without a copy, step by step:
  // - `data` has the highest field number of ActivationChunk, and the chunk is the only field of its CaptureResponse.
  //   The values are therefore its last bytes: a header followed by the slabs' memory is the whole message.
  // - The slabs hold the values row-major and little-endian (the server runs on little-endian machines only), which is
  //   what `data` holds.
  // - Nobody writes to a slab while a reference is out, so gRPC may read it until it drops its slice. It may do that on
  //   any of its threads, and slices that it cuts from ours share the count: the callback runs once, after the last.
  // - The callback frees one reference and calls nothing of gRPC's, as it may run under gRPC's locks.
  std::vector<grpc::Slice> slices;
  slices.reserve(1 + data.size());
  grpc_slice header = grpc_slice_malloc(envelope.bytes() + counted.bytes());
  FieldWriter writer(GRPC_SLICE_START_PTR(header));
  writer.Length(v1::CaptureResponse::kChunkFieldNumber, chunk_bytes);
  WriteFieldsBeforeData(started, chunk, data_bytes, data_offset, writer);
  slices.emplace_back(header, grpc::Slice::STEAL_REF);
  for (const SlabSpan& span : data) {
    if (span.bytes == 0) continue;
    slices.emplace_back(
        span.data(), static_cast<size_t>(span.bytes), [](void* slab) { delete static_cast<SlabRef*>(slab); },
        new SlabRef(span.slab));
  }
  grpc::ByteBuffer message(slices.data(), slices.size());
#ifndef NDEBUG
  CheckAgainstProtobuf(started, chunk, data_offset, message);
#endif
  return message;
}

v1::CaptureSummary SummaryToProto(const CaptureStarted& started, const CaptureEnded& ended) {
  v1::CaptureSummary out;
  out.set_stop_reason(ToProto(ended.stop_reason));
  const size_t hook_points = std::min(started.hook_points.size(), ended.hook_points.size());
  for (size_t i = 0; i < hook_points; ++i) {
    const HookPointSummary& from = ended.hook_points[i];
    v1::HookPointSummary& summary = *out.add_hook_points();
    summary.set_hook_point(started.hook_points[i].name);
    summary.set_rows(from.rows);
    summary.set_statistics_rows(from.statistics_rows);
    summary.set_mean_row_norm(from.mean_row_norm);
    summary.set_mean(from.mean);
    summary.set_rms(from.rms);
    summary.set_nan_count(from.nan_count);
    summary.set_infinity_count(from.infinity_count);
    summary.set_overflow_count(from.overflow_count);
    summary.set_truncated_rows(from.truncated_rows);
    summary.set_conversion_error(from.conversion_error);
    *summary.mutable_mean_vector() = {from.mean_vector.begin(), from.mean_vector.end()};
    summary.set_row_norm_p1(from.row_norm_p1);
    summary.set_row_norm_p50(from.row_norm_p50);
    summary.set_row_norm_p99(from.row_norm_p99);
    summary.set_outlier_row_share(from.outlier_row_share);
  }
  out.set_sequences(ended.sequences);
  out.set_tokens(ended.tokens);
  out.set_batches(ended.batches);
  out.set_mean_batch_fill(ended.mean_batch_fill);
  v1::CaptureTiming& timing = *out.mutable_timing();
  timing.set_total_seconds(absl::ToDoubleSeconds(ended.total_time));
  timing.set_queue_seconds(absl::ToDoubleSeconds(ended.queue_time));
  timing.set_forward_seconds(absl::ToDoubleSeconds(ended.forward_time));
  timing.set_copy_seconds(absl::ToDoubleSeconds(ended.copy_time));
  timing.set_wire_seconds(absl::ToDoubleSeconds(ended.wire_time));
  out.set_resume_token(ended.resume_token);
  return out;
}

grpc::ByteBuffer EncodeSummary(const CaptureStarted& started, const CaptureEnded& ended) {
  v1::CaptureResponse response;
  *response.mutable_summary() = SummaryToProto(started, ended);
  return ToByteBuffer(response);
}

}  // namespace hookline
