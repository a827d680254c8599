// A capture: one client's request while it is served. The engine fills it, a sink (a client's stream, a recording)
// empties it event by event: first Started, then chunks, last Ended.
//
//   auto capture = engine.Start(std::move(plan), address, {.on_ready = [&] { Wake(); }});
//   while (std::optional<CaptureEvent> event = (*capture)->Next()) Handle(*event);   // again at each on_ready
#ifndef HOOKLINE_SERVER_CAPTURE_CAPTURE_H_
#define HOOKLINE_SERVER_CAPTURE_CAPTURE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/base/dtype.h"
#include "server/base/slab_pool.h"
#include "server/capture/request.h"

namespace hookline {

// The grant: hook points, budgets and message size; the proto CaptureStarted.
struct CaptureStarted {
  struct HookPoint {
    std::string name;  // the name in chunks
    int64_t width = 0;
    int64_t max_activations = 0;  // granted
    bool clipped = false;
    int64_t rows = 0;  // those sent before, by the capture that this one resumes
  };
  std::string model;
  std::string fingerprint;
  std::vector<HookPoint> hook_points;
  Dtype dtype = Dtype::kFloat32;
  int64_t top_k = 0;  // 0: whole rows
  int64_t max_message_bytes = 0;
  int64_t next_sequence = 0;
  int64_t window_bytes = 0;
  std::string resume_token;
  TextFacts text;
  int64_t capture_id = 0;    // 0: a read of a recording
  int64_t batch_tokens = 0;  // the most that a forward pass has; 0: a read of a recording
};

// The sequence, position and token of each row of a row group. The group's chunks share it.
struct Provenance {
  std::vector<int64_t> sequence;
  std::vector<int32_t> position;
  std::vector<uint32_t> token_id;
};

// Rows of one hook point. `data` holds rows as RowLayout describes them, one after another; a chunk larger than a slab
// lies in several slabs, whose border may lie inside a row. Destroying the chunk gives its slabs back.
struct Chunk {
  int hook_point = 0;  // index into CaptureStarted::hook_points
  int64_t first_row = 0;
  int64_t rows = 0;
  std::vector<SlabSpan> data;
  // Null unless the request asked for it. Its first `rows` entries are this chunk's (a chunk that a budget cut has
  // fewer rows than its group).
  std::shared_ptr<const Provenance> provenance;
  std::string resume_token;
};

enum class StopReason { kBudget, kSourceEnded, kCancelled, kShuttingDown, kError };

// Rows and statistics of one hook point; the proto HookPointSummary.
struct HookPointSummary {
  int64_t rows = 0;
  int64_t statistics_rows = 0;
  double mean_row_norm = 0;
  double mean = 0;
  double rms = 0;
  int64_t nan_count = 0;
  int64_t infinity_count = 0;
  int64_t overflow_count = 0;
  int64_t truncated_rows = 0;
  double conversion_error = 0;
  // statistics_only; empty and 0 otherwise.
  std::vector<float> mean_vector;
  double row_norm_p1 = 0;
  double row_norm_p50 = 0;
  double row_norm_p99 = 0;
  double outlier_row_share = 0;
};

// The proto CaptureSummary, and the status with which the call ends.
struct CaptureEnded {
  absl::Status status;  // OK unless the server ends the capture with an error
  StopReason stop_reason = StopReason::kSourceEnded;
  std::vector<HookPointSummary> hook_points;
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t batches = 0;
  double mean_batch_fill = 0;
  absl::Duration total_time;
  absl::Duration queue_time;
  absl::Duration forward_time;
  absl::Duration copy_time;
  absl::Duration wire_time;
  std::string resume_token;
};

using CaptureEvent = std::variant<CaptureStarted, Chunk, CaptureEnded>;

// The engine calls these with none of its locks held, from its own threads and from any thread that destroys a chunk.
// They must not block.
struct CaptureCallbacks {
  // An event is ready after Next returned none.
  std::function<void()> on_ready;
  // StreamedSource: there is room again after AddSequences returned false.
  std::function<void()> on_source_room;
  // The capture has ended because its client does not read, and the client still does not: the transport must release
  // what it holds without waiting for the client any longer.
  std::function<void()> on_expired = nullptr;
};

// Thread-safe. Its owner may release it at any time, which cancels it. Slabs that chunks still hold come back when the
// chunks are destroyed.
class Capture {
 public:
  virtual ~Capture() = default;

  // Returns the next event, or none if none is ready. After CaptureEnded it always returns none.
  virtual std::optional<CaptureEvent> Next() = 0;

  // For StreamedSource only: adds sequences, which are checked like a request's; an error also ends the capture.
  // Returns whether there is room for more; if not, on_source_room is called when there is. The given sequences are
  // accepted in either case.
  virtual absl::StatusOr<bool> AddSequences(TokenBatch batch) = 0;

  // For StreamedSource only: says that no more sequences will come.
  virtual void FinishSource() = 0;

  // Ends the capture. Queued chunks are dropped and their slabs returned, work in flight is discarded, and no callback
  // runs after Cancel has returned: it waits for one that is running, so hold no lock that callbacks take. Idempotent.
  // Do not call it from a callback.
  virtual void Cancel() = 0;

  // Returns how many captures are admitted before this one while it waits; none once it runs.
  virtual std::optional<int> CapturesAhead() const { return std::nullopt; }

  // Adds to the summary the time that the sink's transport took for a chunk.
  virtual void AddWireTime(absl::Duration duration) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_CAPTURE_H_
