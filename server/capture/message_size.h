// How many rows fit into a message: an upper bound on what an ActivationChunk takes on the wire.
#ifndef HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_
#define HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_

#include <cstdint>

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

// Bytes of a message besides its rows: every field's tag and longest length or varint, and the enclosing
// CaptureResponse's; they come to 70 and the two strings.
constexpr int64_t MessageHeaderBytes(const MessageShape& shape) {
  return 96 + shape.hook_point_name_bytes + kMaxResumeTokenBytes;
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

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_
