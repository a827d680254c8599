// Limits on one capture. Those on messages also hold for reads of recordings.
#ifndef HOOKLINE_SERVER_CAPTURE_LIMITS_H_
#define HOOKLINE_SERVER_CAPTURE_LIMITS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace hookline {

constexpr int64_t kDefaultMessageBytes = int64_t{1} << 20;
constexpr int64_t kMinMessageBytes = int64_t{16} << 10;
constexpr int64_t kMaxMessageBytes = int64_t{16} << 20;  // clients may raise gRPC's limit of 4 MiB to this

// Returns the largest message for a request that asks for `requested` bytes (proto `max_message_bytes`; 0: the
// default). INVALID_ARGUMENT outside the limits above.
absl::StatusOr<int64_t> ResolveMessageBytes(int64_t requested);

// Returns INVALID_ARGUMENT naming `field` for more than 1024 ignored ids: each costs a pass over the batch.
absl::Status CheckIgnoredIds(absl::string_view field, size_t count);

// Limits on one request or one streamed message.
struct TokenLimits {
  int64_t max_request_tokens = 0;
  int64_t max_request_sequences = 0;
};

// Limits on a capture of one model. Every value is positive, because the server's defaults are resolved for the model.
struct CaptureLimits {
  int64_t slab_bytes = 0;
  int64_t slab_count = 0;    // of the whole server; a capture's window has at most a quarter
  int64_t window_slabs = 0;  // of a window, unless its capture's row groups need more
  int64_t max_batch_tokens = 0;
  TokenLimits tokens;
  int64_t max_sequence_length = 0;  // at most the model's context
  int64_t max_rows = 0;             // per hook point; larger budgets are clipped
  int max_hook_points = 0;          // after expansion
  int64_t max_paused_tokens = 0;    // positions of all passes that wait for rows of clients
  absl::Duration answer_timeout;    // the longest that such a pass waits
  int max_captures = 0;             // at a time, which bounds the members of a feed too
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_LIMITS_H_
