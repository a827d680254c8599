// A capture request that was checked against its model and the server's limits, and what follows from it.
#ifndef HOOKLINE_SERVER_CAPTURE_CAPTURE_PLAN_H_
#define HOOKLINE_SERVER_CAPTURE_CAPTURE_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/capture/engine.h"
#include "server/capture/request.h"
#include "server/capture/resume_token.h"
#include "server/dataset/dataset.h"
#include "server/model/model.h"

namespace hookline {

struct CapturePlan {
  struct HookPoint {
    int index = 0;     // into the model's hook points
    std::string name;  // as chunks carry it
    int64_t width = 0;
    int64_t row_bytes = 0;
    int64_t budget = 0;  // rows from the capture's start
    bool clipped = false;
    int64_t start = 0;  // rows sent before the resume; 0 without
  };

  const Model* model = nullptr;
  std::vector<HookPoint> hook_points;
  int64_t max_budget = 0;  // of any hook point
  Dtype dtype = Dtype::kFloat32;
  Selection selection;  // normalised: stride at least 1, ids sorted
  bool provenance = false;
  bool deterministic = false;
  int64_t max_message_bytes = 0;

  int64_t group_rows = 0;    // in a row group, at most
  int64_t window_slabs = 0;  // holds two such groups

  // A dataset source; null where the client sends the sequences. `dataset_source` is clipped to what there is.
  const Dataset* dataset = nullptr;
  DatasetSource dataset_source;
  int64_t dataset_sequence_length = 0;  // without the prepended token

  CaptureDigests digests;
  bool resumes = false;
  ResumePosition position;  // where the capture begins
};

// Slabs that a row group of `rows` rows takes when each hook point's rows follow the previous one's, cut between rows
// where a slab ends.
int64_t GroupSlabs(const std::vector<CapturePlan::HookPoint>& hook_points, int64_t rows, int64_t slab_bytes);

// Checks everything but the sequences themselves. `options` has its defaults resolved for the model
// (max_sequence_length, max_batch_tokens). Errors: INVALID_ARGUMENT naming the field, NOT_FOUND (a dataset),
// RESOURCE_EXHAUSTED (a limit, with both numbers).
absl::StatusOr<CapturePlan> MakeCapturePlan(const CaptureRequest& request, const Model& model,
                                            const EngineOptions& options, const std::vector<const Dataset*>& datasets);

// Checks sequences that a client sent: not empty, not too long, ids below the vocabulary's size, not too many together.
// `field` is the proto path of the TokenBatch. `first_sequence` is the index of its first sequence among all that the
// client streams; errors name sequences so, since a client does not know how its messages were cut.
absl::Status CheckTokens(const TokenBatch& tokens, absl::string_view field, int64_t first_sequence, const Model& model,
                         const EngineOptions& options);

// What Engine::RequestDigest answers.
std::string RequestDigestOf(const CaptureRequest& request, const CapturePlan& plan);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_CAPTURE_PLAN_H_
