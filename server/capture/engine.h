// The engine: admits captures, lets their sequences share forward passes, and hands the rows to their sinks.
#ifndef HOOKLINE_SERVER_CAPTURE_ENGINE_H_
#define HOOKLINE_SERVER_CAPTURE_ENGINE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/request.h"
#include "server/dataset/dataset.h"
#include "server/model/model.h"

namespace hookline {

// Limits; each is a flag of the server. The defaults admit every hook point of a model at once, nanochat's
// 10 x sequence_len positions, 10 million rows, and 64 captures, all from one address too.
struct EngineOptions {
  int64_t slab_bytes = int64_t{1} << 20;
  int64_t slab_count = 512;  // all allocated and touched at start
  int64_t window_slabs = 8;  // of a capture whose row groups need no more; at most a quarter of slab_count
  // Of one capture: rows that wait on the device for its window, when a batch brings more than the window holds.
  int64_t max_pending_bytes = int64_t{1} << 30;
  // Positions in a forward pass, padding included; a longer sequence runs alone. 0: 8192 on an accelerator, 2048 on the
  // CPU, where larger batches gain nothing and others wait longer.
  int64_t max_batch_tokens = 0;
  // How long sequences that do not fill a batch wait for other captures' before they run; a quarter of it where there
  // is no other capture.
  absl::Duration max_batch_delay = absl::Milliseconds(2);
  int64_t max_request_tokens = int64_t{16} << 20;  // in one request or one streamed message
  int64_t max_request_sequences = int64_t{1} << 20;
  // Of all captures together, those that wait and those that run: ids that clients sent, from their arrival until the
  // last sequence of their message has entered a batch. They take 4 bytes each, and 4 more for each sequence.
  int64_t max_held_tokens = int64_t{64} << 20;
  int64_t max_sequence_length = 0;  // 0: the model's context_length
  int max_hook_points = 4096;       // after expansion
  int64_t max_rows = 10'000'000;    // per hook point and capture: larger budgets are clipped
  int max_captures = 64;
  int max_captures_per_address = 64;
  // Of a feed: how long its other members wait for one that does not read.
  absl::Duration feed_stall_timeout = absl::Seconds(30);
};

// What a capture would bring and cost; the proto EstimateCaptureResponse.
struct CaptureEstimate {
  struct HookPoint {
    std::string name;
    int64_t rows = 0;
    int64_t bytes = 0;
  };
  std::vector<HookPoint> hook_points;
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t bytes = 0;
  std::optional<absl::Duration> time;
};

// Counts of what fell into buckets; `counts[i]` is of values up to `bounds[i]`, the last one of all larger.
struct Histogram {
  std::vector<double> bounds;
  std::vector<uint64_t> counts;  // one more than bounds, not cumulative
  double sum = 0;

  void Add(double value) {
    const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value);
    ++counts[static_cast<size_t>(bucket - bounds.begin())];
    sum += value;
  }
};

// What the engine has done and is doing, for metrics. Counters count from the engine's start.
struct EngineSnapshot {
  struct HookPoint {
    std::string model;
    std::string name;
    int64_t rows = 0;   // handed to sinks
    int64_t bytes = 0;  // of values
  };
  struct ModelLoad {
    std::string model;
    int64_t tokens = 0;               // run, padding not counted
    Histogram batch_fill;             // share of a batch's positions that held a token
    Histogram forward_seconds;        // of a batch
    Histogram queue_seconds;          // from when a capture's next sequence could run to its forward pass
    int64_t device_memory_bytes = 0;  // allocated on the device; 0 on the CPU
  };
  int64_t slabs_free = 0;      // in no window
  int64_t slabs_reserved = 0;  // in a window, empty
  int64_t slabs_filled = 0;    // with rows
  int64_t captures_queued = 0;
  int64_t captures_running = 0;
  // By StopReason, in its order.
  std::vector<int64_t> captures_ended;
  std::vector<HookPoint> hook_points;  // those that were captured
  std::vector<ModelLoad> models;
};

// Thread-safe.
class Engine {
 public:
  // INVALID_ARGUMENT: options that contradict each other; RESOURCE_EXHAUSTED: no memory for the slabs.
  // A dataset may hold ids that a model lacks; a capture of both is refused. `models` may be empty.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        std::vector<std::unique_ptr<Model>> models,
                                                        std::vector<std::unique_ptr<const Dataset>> datasets);

  // Cancels what still runs and joins the engine's threads. Captures, and chunks taken from them, must be gone before.
  virtual ~Engine() = default;

  virtual const EngineOptions& options() const = 0;

  // In the order given to Create. They live as long as the engine.
  virtual std::vector<const Model*> models() const = 0;

  // The model of that name; "" names the only one. NOT_FOUND or, for "" among several, INVALID_ARGUMENT; both list the
  // names.
  virtual absl::StatusOr<const Model*> FindModel(absl::string_view name) const = 0;

  // In the order given to Create.
  virtual std::vector<const Dataset*> datasets() const = 0;

  // NOT_FOUND lists the names.
  virtual absl::StatusOr<const Dataset*> FindDataset(absl::string_view name) const = 0;

  // Checks the request and admits or queues the capture. `address` is the client's, for its limit. Errors as the proto
  // CaptureService states them.
  virtual absl::StatusOr<std::shared_ptr<Capture>> Start(CaptureRequest request, absl::string_view address,
                                                         CaptureCallbacks callbacks) = 0;

  // What Start would grant, without starting: what the capture's first event says once it is admitted. Errors as
  // Start's, except those of what else is running. Not for a feed, whose members begin where it is by then.
  virtual absl::StatusOr<CaptureStarted> Grant(const CaptureRequest& request) const = 0;

  virtual absl::StatusOr<CaptureEstimate> Estimate(const CaptureRequest& request) const = 0;

  // Checks the request and answers 32 hexadecimal digits that are equal for requests which bring the same rows of the
  // same weights: the resume token and how rows are cut into messages do not count.
  virtual absl::StatusOr<std::string> RequestDigest(const CaptureRequest& request) const = 0;

  virtual EngineSnapshot Snapshot() const = 0;

  // Refuses new captures (UNAVAILABLE), lets running ones end until `deadline`, then ends the rest with a summary
  // (kShuttingDown, UNAVAILABLE). Returns when every capture has ended, its sink has taken the end or let go, and every
  // slab is back; or a second after the deadline.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_ENGINE_H_
