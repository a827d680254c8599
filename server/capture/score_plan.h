// A request for scores that was checked, and how it is cut into forward passes.
#ifndef HOOKLINE_SERVER_CAPTURE_SCORE_PLAN_H_
#define HOOKLINE_SERVER_CAPTURE_SCORE_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/capture/dataset_range.h"
#include "server/capture/limits.h"
#include "server/capture/score_request.h"
#include "server/model/evaluation/score_pass.h"
#include "server/model/model.h"

namespace hookline {

// One forward pass: these sequences of the source under these variants.
struct ScoreUnit {
  int64_t first_sequence = 0;  // counted from 0, even in a part of a dataset
  int64_t sequences = 0;
  size_t first_variant = 0;
  size_t variants = 0;
  int64_t positions = 0;  // of all its sequences under all its variants and the clean pass, padding included
};

struct ScorePlan {
  const Model* model = nullptr;
  TokenBatch tokens;
  DatasetRange dataset;  // its dataset is null if the source is `tokens`
  ScoreOutputs outputs;
  std::vector<std::string> hook_points;  // names of outputs.hook_points
  // The variants of the request, then those with zeros that loss_recovered needs, whose scores are not sent.
  std::vector<Variant> variants;
  size_t sent_variants = 0;
  // The hook points of the interventions as they were named, for each of the request's variants.
  std::vector<std::vector<std::string>> replaced_names;
  // For each of the request's variants, an index into `variants`; empty without loss_recovered.
  std::vector<size_t> zero_of;
  int64_t max_batch_tokens = 0;
  int64_t position_bytes = 0;  // those that a position's outputs take on the host
  bool in_one_pass = false;    // a mean is taken over all sequences
  // The most positions of a pass that pauses for rows of the client; 0: passes do not pause.
  int64_t max_paused_positions = 0;
  absl::Duration answer_timeout;

  int64_t sequences() const { return dataset.dataset == nullptr ? tokens.sequences() : dataset.sequence_count; }
  int64_t length(int64_t sequence) const {
    return dataset.dataset == nullptr ? static_cast<int64_t>(tokens[sequence].size()) : dataset.length();
  }
  // The index by which answers name the sequence.
  int64_t index(int64_t sequence) const { return dataset.first_sequence + sequence; }

  // The unit that begins with this sequence and variant; `first_sequence` must be below sequences().
  ScoreUnit Unit(int64_t first_sequence, size_t first_variant) const;
};

// Checks `request` and plans it. Errors are those of the proto EvaluationService; INVALID_ARGUMENT names the field.
absl::StatusOr<ScorePlan> MakeScorePlan(ScoreRequest request, const Model& model, const CaptureLimits& limits,
                                        const std::vector<const Dataset*>& datasets);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_SCORE_PLAN_H_
