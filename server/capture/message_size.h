// How many rows fit into a message: an upper bound on what an ActivationChunk takes on the wire.
#ifndef HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_
#define HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/dtype.h"
#include "server/capture/request.h"

namespace hookline {

// The largest resume token (resume_token.h).
constexpr int64_t kMaxResumeTokenBytes = 128;

struct MessageShape {
  int64_t hook_point_name_bytes = 0;
  int64_t width = 0;
  Dtype dtype = Dtype::kFloat32;
  Encoding encoding = Encoding::kBytes;
  bool provenance = false;
};

// An upper bound on a message's fixed part: every field's tag and longest length or varint, and the enclosing
// CaptureResponse's, come to 70 bytes; the rest is room for fields to come.
constexpr int64_t kMessageFieldBytes = 96;

// Bytes of a message besides its rows.
constexpr int64_t MessageHeaderBytes(const MessageShape& shape) {
  return kMessageFieldBytes + shape.hook_point_name_bytes + kMaxResumeTokenBytes;
}

// Bytes that one row adds: its values, and as provenance varints of a sequence (10), a position (5), a token id (5).
constexpr int64_t MessageRowBytes(const MessageShape& shape) {
  return shape.width * (shape.encoding == Encoding::kValues ? 4 : DtypeBytes(shape.dtype)) +
         (shape.provenance ? 20 : 0);
}

// Rows that fit into a message of `max_message_bytes`; 0 if not even one does.
constexpr int64_t MaxMessageRows(const MessageShape& shape, int64_t max_message_bytes) {
  int64_t room = max_message_bytes - MessageHeaderBytes(shape);
  return room < 0 ? 0 : room / MessageRowBytes(shape);
}

// The same, for a hook point of that name. INVALID_ARGUMENT if not even one fits.
absl::StatusOr<int64_t> MessageRows(const MessageShape& shape, absl::string_view hook_point, int64_t max_message_bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_
