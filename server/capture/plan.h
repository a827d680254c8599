// A capture request that was checked against its model and the server's limits, with its grant, its cost and its
// identity. Everything later works from the plan.
//
//   ASSIGN_OR_RETURN(CapturePlan plan, engine.Plan(std::move(request)));
//   plan.Started();  plan.Estimate();  plan.Digest();
//   engine.Start(std::move(plan), address, callbacks);
#ifndef HOOKLINE_SERVER_CAPTURE_PLAN_H_
#define HOOKLINE_SERVER_CAPTURE_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/row_layout.h"
#include "server/capture/capture.h"
#include "server/capture/dataset_range.h"
#include "server/capture/limits.h"
#include "server/capture/request.h"
#include "server/capture/resume_token.h"
#include "server/dataset/dataset.h"
#include "server/model/model.h"

namespace hookline {

// The estimated rows, bytes and time of a capture; the proto EstimateCaptureResponse.
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
  int layers = 0;                      // those that a forward pass runs, at least 1
  std::optional<absl::Duration> time;  // filled in by the engine, once it has run a forward pass
};

struct CapturePlan {
  struct HookPoint {
    int index = 0;     // index into the model's hook points
    std::string name;  // the name in chunks
    int64_t width = 0;
    RowLayout layout;
    int64_t row_bytes = 0;  // of the layout
    int64_t budget = 0;     // rows from the capture's start
    bool clipped = false;
    int64_t start = 0;  // rows sent before the resume; 0 without
  };

  // Returns the grant of a capture that begins at `begin`, for its first event.
  CaptureStarted Started(const ResumePosition& begin) const;
  CaptureStarted Started() const { return Started(position); }

  // Estimates the capture from `position` on. For a dataset it takes constant time, and also counts rows that
  // exclude_token_ids leaves out.
  CaptureEstimate Estimate() const;

  // Returns 32 hexadecimal digits that are equal for plans with the same rows of the same weights. The resume position
  // and the cut into messages do not count. It hashes the request's tokens, so call it before ContinueFrom.
  std::string Digest() const;

  // Moves the beginning of the capture to the position of `resume_token`, which belongs to messages of `message_bytes`.
  // `tokens` must begin at the start of the source; those before the position are dropped. Errors are those for a
  // request's `resume_token`.
  absl::Status ContinueFrom(const std::string& resume_token, int64_t message_bytes);

  // Returns the size of the window: at least two of the largest row groups, so that one can be filled while the other
  // is read.
  int64_t WindowBytes() const { return window_slabs * limits.slab_bytes; }

  const Model* model = nullptr;
  CaptureLimits limits;
  std::vector<HookPoint> hook_points;
  int64_t max_budget = 0;  // of any hook point
  Dtype dtype = Dtype::kFloat32;
  Encoding encoding = Encoding::kBytes;
  Selection selection;  // normalized
  int64_t top_k = 0;    // 0: whole rows
  bool statistics_only = false;
  bool provenance = false;
  TextFacts text;
  bool deterministic = false;
  int64_t max_message_bytes = 0;

  int64_t group_rows = 0;    // the most in a row group
  int64_t group_slabs = 0;   // those that such a group takes
  int64_t window_slabs = 0;  // room for at least two such groups

  // The source of the sequences: a dataset (a feed's too), the request's tokens, or else the client's stream.
  DatasetRange dataset;
  std::optional<FeedSource> feed;  // none for a resumed member, which continues alone
  TokenBatch tokens;
  bool streams = false;

  CaptureDigests digests;
  bool resumes = false;
  ResumePosition position;  // where the capture begins
};

// Checks `request` and plans it. Errors: INVALID_ARGUMENT naming the field, NOT_FOUND (a dataset), RESOURCE_EXHAUSTED
// (a limit, with both numbers), FAILED_PRECONDITION (a resume token that this server's limits do not allow). Only
// Engine::Plan may call it.
absl::StatusOr<CapturePlan> MakeCapturePlan(CaptureRequest request, const Model& model, const CaptureLimits& limits,
                                            const std::vector<const Dataset*>& datasets);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_PLAN_H_
