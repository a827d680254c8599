// The engine's limits.
#ifndef HOOKLINE_SERVER_ENGINE_OPTIONS_H_
#define HOOKLINE_SERVER_ENGINE_OPTIONS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/capture/client_identity.h"
#include "server/capture/limits.h"
#include "server/model/model.h"

namespace hookline {

// Each option is a flag of the server. The defaults admit every hook point of a model at once, nanochat's 10 x
// sequence_len positions, 10 million rows, and 64 captures, even if all come from one address.
struct EngineOptions {
  int64_t slab_bytes = int64_t{1} << 20;
  int64_t slab_count = 512;  // all allocated and touched at start
  // The slabs of a capture's window for each executor of its model, unless its row groups need more; at most a quarter
  // of slab_count. 0 means 32 on an accelerator, which hold the rows of more than two batches of GPT-2 small, so that
  // the device need not wait for the client, and 8 on the CPU, whose batches are smaller.
  int64_t window_slabs = 0;
  // The most bytes that rows of one capture may take on the device while they wait for its window, if a batch has more
  // rows than the window holds.
  int64_t max_pending_bytes = int64_t{1} << 30;
  // The most bytes that rows of all captures together may take on one device while they wait for windows. Batches are
  // formed within this limit, if need be of a single sequence; a client that reads slowly then delays only captures
  // whose single sequences exceed their window.
  int64_t max_staged_bytes = int64_t{4} << 30;
  // Positions in a forward pass, padding included; a longer sequence runs alone. 0: 8192 on an accelerator, 2048 on the
  // CPU, where larger batches gain nothing and make others wait longer.
  int64_t max_batch_tokens = 0;
  // The longest that sequences wait for those of other captures to fill a batch. If no other capture may bring more,
  // they wait until half of it has passed since the last arrival.
  absl::Duration max_batch_delay = absl::Milliseconds(2);
  int64_t max_request_tokens = int64_t{16} << 20;  // in one request or one streamed message
  int64_t max_request_sequences = int64_t{1} << 20;
  // Token ids of clients that all captures hold together, from their arrival until the last sequence of their message
  // has entered a batch. Each id takes 4 bytes, and each sequence 4 more.
  int64_t max_held_tokens = int64_t{64} << 20;
  int64_t max_sequence_length = 0;  // 0: the model's context_length
  int max_hook_points = 4096;       // after expansion
  int64_t max_rows = 10'000'000;    // per hook point and capture: larger budgets are clipped
  int max_captures = 64;            // running captures; as many more may wait
  int max_captures_per_address = 64;
  // The limits of one client, unless the auth file says otherwise. Where they are absent, a client may have a quarter
  // of the slabs, of the running captures and of the waiting ones, and nothing else is limited.
  ClientQuotas default_quotas;
  // The longest that a capture whose client neither reads nor sends keeps what others wait for.
  absl::Duration stall_timeout = absl::Minutes(1);
  // Positions of forward passes that wait for rows of their clients (Substitute) on one model's device, variants and
  // padding counted; each position keeps one or a few rows of the residual stream there. The default is the size of
  // eight full batches on an accelerator: 512 MiB for a width of 4096 in bfloat16. One pass takes at most a quarter
  // of it.
  int64_t max_paused_tokens = int64_t{64} << 10;
  // The longest that such a pass waits for the next answer: enough for a slow client to compute, and short enough that
  // a client that has vanished does not block the device's room for long.
  absl::Duration answer_timeout = absl::Seconds(30);
  // The longest that the other members of a feed wait for one that does not read.
  absl::Duration feed_stall_timeout = absl::Seconds(30);

  TokenLimits token_limits() const { return {max_request_tokens, max_request_sequences}; }
};

// Returns INVALID_ARGUMENT, naming the option, if one is not positive where it must be, or contradicts another.
absl::Status CheckOptions(const EngineOptions& options);

// Returns the limits of a capture of a model that `executors` executors run, with every default resolved.
CaptureLimits LimitsFor(const EngineOptions& options, const ModelInfo& model, int64_t executors = 1);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_OPTIONS_H_
