#include "server/engine/options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr int64_t kMinSlabs = 8;
constexpr int64_t kAcceleratorBatchTokens = 8192;
constexpr int64_t kCpuBatchTokens = 2048;
constexpr int64_t kAcceleratorWindowSlabs = 32;
constexpr int64_t kCpuWindowSlabs = 8;

absl::Status CheckPositive(absl::string_view name, int64_t value) {
  if (value > 0) return absl::OkStatus();
  return InvalidField(name, absl::StrCat(value, " is not positive"));
}

}  // namespace

absl::Status CheckOptions(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckPositive("slab_bytes", options.slab_bytes));
  RETURN_IF_ERROR(CheckPositive("slab_count", options.slab_count));
  RETURN_IF_ERROR(CheckPositive("max_request_tokens", options.max_request_tokens));
  RETURN_IF_ERROR(CheckPositive("max_request_sequences", options.max_request_sequences));
  RETURN_IF_ERROR(CheckPositive("max_held_tokens", options.max_held_tokens));
  if (options.max_held_tokens < options.max_request_tokens) {
    return InvalidField("max_held_tokens",
                        absl::StrCat(options.max_held_tokens, " is less than the ", options.max_request_tokens,
                                     " of one message (max_request_tokens)"));
  }
  RETURN_IF_ERROR(CheckPositive("max_hook_points", options.max_hook_points));
  RETURN_IF_ERROR(CheckPositive("max_rows", options.max_rows));
  RETURN_IF_ERROR(CheckPositive("max_captures", options.max_captures));
  RETURN_IF_ERROR(CheckPositive("max_captures_per_address", options.max_captures_per_address));
  if (options.slab_bytes % 4096 != 0) {
    return InvalidField("slab_bytes", absl::StrCat(options.slab_bytes, " is not a multiple of 4096"));
  }
  if (options.slab_count < kMinSlabs) {
    return InvalidField("slab_count", absl::StrCat(options.slab_count, " is less than ", kMinSlabs,
                                                   ", of which a capture may have a quarter"));
  }
  RETURN_IF_ERROR(CheckPositive("max_staged_bytes", options.max_staged_bytes));
  RETURN_IF_ERROR(CheckPositive("max_paused_tokens", options.max_paused_tokens));
  RETURN_IF_ERROR(CheckPositive("answer_timeout", absl::ToInt64Nanoseconds(options.answer_timeout)));
  if (options.window_slabs < 0 || options.max_batch_tokens < 0 || options.max_sequence_length < 0 ||
      options.max_pending_bytes < 0) {
    return InvalidField("window_slabs, max_batch_tokens, max_sequence_length, max_pending_bytes",
                        "must not be negative");
  }
  return absl::OkStatus();
}

CaptureLimits LimitsFor(const EngineOptions& options, const ModelInfo& model, int64_t executors) {
  CaptureLimits limits;
  limits.slab_bytes = options.slab_bytes;
  limits.slab_count = options.slab_count;
  // Rows that wait for an earlier batch hold slabs, and a single capture must be able to keep all executors busy.
  const bool is_cpu = model.device == "cpu";
  limits.window_slabs = options.window_slabs;
  if (limits.window_slabs == 0) limits.window_slabs = is_cpu ? kCpuWindowSlabs : kAcceleratorWindowSlabs;
  limits.window_slabs *= executors;
  limits.max_batch_tokens = options.max_batch_tokens;
  if (limits.max_batch_tokens == 0) limits.max_batch_tokens = is_cpu ? kCpuBatchTokens : kAcceleratorBatchTokens;
  limits.tokens = options.token_limits();
  limits.max_sequence_length = model.context_length;
  if (options.max_sequence_length != 0) {
    limits.max_sequence_length = std::min(limits.max_sequence_length, options.max_sequence_length);
  }
  limits.max_rows = options.max_rows;
  limits.max_hook_points = options.max_hook_points;
  limits.max_captures = options.max_captures;
  limits.max_paused_tokens = options.max_paused_tokens;
  limits.answer_timeout = options.answer_timeout;
  return limits;
}

}  // namespace hookline
