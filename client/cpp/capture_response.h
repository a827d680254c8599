// Reads a CaptureResponse out of the slices in which gRPC received it. The values of a chunk are found by hand and stay
// where they are, because protobuf would copy them once more than needed; protobuf parses everything else.
#ifndef HOOKLINE_CLIENT_CPP_CAPTURE_RESPONSE_H_
#define HOOKLINE_CLIENT_CPP_CAPTURE_RESPONSE_H_

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "grpcpp/support/slice.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::client {

// Rows of one hook point. Owns the received memory, or holds a piece of the memory shared with the server, which the
// server can use again when the chunk is destroyed; movable.
class Chunk {
 public:
  Chunk(v1::ActivationChunk header, std::vector<grpc::Slice> slices, std::vector<absl::Span<const uint8_t>> pieces);
  Chunk(Chunk&&) = default;
  Chunk& operator=(Chunk&&) = default;
  // Small slices hold their bytes inline, so `pieces_` of a copy would point into the original.
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  // Returns every field but `data`.
  const v1::ActivationChunk& header() const { return header_; }
  // Returns the values, as the field `data` holds them, in consecutive pieces. A piece can end anywhere, even inside a
  // value, and lives as long as this chunk.
  absl::Span<const absl::Span<const uint8_t>> pieces() const { return pieces_; }
  int64_t data_bytes() const { return data_bytes_; }
  // Uses these bytes as the values, instead of the field `data`; `memory` keeps them alive and unchanged.
  void SetData(absl::Span<const uint8_t> data, std::shared_ptr<const void> memory);
  // Copies `bytes` bytes of `data` from `offset` on; both must lie within data_bytes().
  void CopyData(int64_t offset, int64_t bytes, void* destination) const;

  // Turns rows of a part into rows of the whole capture: they begin at `first_row`, the indices of their sequences grow
  // by `more_sequences`, and the resume token is dropped.
  void Place(int64_t first_row, int64_t more_sequences);
  // Drops all but the first `rows` rows, which is from 1 to header().rows(). Not for ENCODING_VALUES.
  void KeepRows(int32_t rows);

  // The index into CaptureStarted's hook points, which CaptureCall sets.
  int hook_point_index() const { return hook_point_index_; }
  void set_hook_point_index(int index) { hook_point_index_ = index; }

 private:
  v1::ActivationChunk header_;
  std::vector<grpc::Slice> slices_;
  std::shared_ptr<const void> memory_;
  std::vector<absl::Span<const uint8_t>> pieces_;
  int64_t data_bytes_ = 0;
  int hook_point_index_ = -1;
};

using CaptureEvent = std::variant<v1::CaptureStarted, Chunk, v1::CaptureSummary>;

// Parses a message. INTERNAL: the bytes are not a CaptureResponse with exactly one of its kinds. Whatever the bytes
// are, nothing outside the slices is read. Unknown fields are skipped.
absl::StatusOr<CaptureEvent> ParseCaptureResponse(std::vector<grpc::Slice> slices);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_CAPTURE_RESPONSE_H_
