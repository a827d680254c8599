// Computes how many rows fit into a message, from an upper bound on the bytes of an ActivationChunk.
#ifndef HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_
#define HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/row_layout.h"
#include "server/capture/request.h"

namespace hookline {

// The largest resume token (resume_token.h).
constexpr int64_t kMaxResumeTokenBytes = 128;

struct MessageShape {
  int64_t hook_point_name_bytes = 0;
  RowLayout layout;
  Encoding encoding = Encoding::kBytes;
  bool provenance = false;
  int64_t token_text_bytes = 0;  // of the longest token's text, if provenance has texts
};

// An upper bound on a message's fixed part. Today the tags and the longest lengths and varints of all fields, and of
// the enclosing CaptureResponse, take 84 bytes; the rest is room for new fields.
constexpr int64_t kMessageFieldBytes = 96;

// Returns the bytes of a message without its rows.
constexpr int64_t MessageHeaderBytes(const MessageShape& shape) {
  return kMessageFieldBytes + shape.hook_point_name_bytes + kMaxResumeTokenBytes;
}

// Returns the bytes that one row adds: its values (as numbers: 4 bytes each, and 5 for the varint of each index) and,
// with provenance, varints of a sequence (10), a position (5), a token id (5), and a text with its tag and length (3).
constexpr int64_t MessageRowBytes(const MessageShape& shape) {
  const RowLayout& layout = shape.layout;
  const int64_t as_numbers = 4 * layout.numbers() + 5 * layout.top_k;
  const int64_t text = shape.token_text_bytes > 0 ? 3 + shape.token_text_bytes : 0;
  return (shape.encoding == Encoding::kValues ? as_numbers : layout.bytes()) + (shape.provenance ? 20 + text : 0);
}

// Returns how many rows fit into a message of `max_message_bytes`; 0 if not even one does.
constexpr int64_t MaxMessageRows(const MessageShape& shape, int64_t max_message_bytes) {
  int64_t room = max_message_bytes - MessageHeaderBytes(shape);
  return room < 0 ? 0 : room / MessageRowBytes(shape);
}

// Returns the same for a hook point of that name. INVALID_ARGUMENT if not even one row fits.
absl::StatusOr<int64_t> MessageRows(const MessageShape& shape, absl::string_view hook_point, int64_t max_message_bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_MESSAGE_SIZE_H_
