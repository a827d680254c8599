// A running request for scores, as its client sees it.
#ifndef HOOKLINE_SERVER_CAPTURE_SCORING_H_
#define HOOKLINE_SERVER_CAPTURE_SCORING_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/capture/score_plan.h"
#include "server/model/evaluation/score_pass.h"

namespace hookline {

struct ScoreStarted {
  std::shared_ptr<const ScorePlan> plan;
};

// One sequence under one variant.
struct ScoredSequence {
  int64_t sequence = 0;  // ScorePlan::index
  int64_t tokens = 0;
  size_t variant = 0;  // 0: the clean pass; 1 + i: the plan's variants[i]
  SequenceScore score;
  std::vector<uint32_t> token_ids;  // only for the clean pass, if each token's loss is wanted
};

// Rows of one sequence that the client is to answer.
struct RowsAsked {
  int64_t sequence = 0;     // ScorePlan::index
  size_t variant = 0;       // index into the plan's variants
  size_t intervention = 0;  // index among the variant's
  int64_t width = 0;
  std::vector<uint32_t> token_ids;  // (T)
  std::vector<float> rows;          // (T, width), row-major
  bool last = false;                // the pass waits for the answers
};

// A client's answer: rows of one sequence and variant, which replace those that it was asked for.
struct RowsAnswer {
  int64_t sequence = 0;
  std::string variant;
  std::string hook_point;
  int64_t first_position = 0;
  int64_t rows = 0;
  std::vector<bool> mask;     // (rows); empty: all are replaced
  std::vector<float> values;  // of the rows that are replaced, row-major
};

struct VariantTotals {
  double loss_sum = 0;
  int64_t predictions = 0;
  double kl_sum = 0;
  int64_t tokens = 0;
  std::vector<ReplacedRows> replaced;  // by intervention

  // Returns NaN if there are no predictions.
  double MeanLoss() const;
};

struct ScoreEnded {
  absl::Status status;
  std::vector<VariantTotals> variants;  // the clean pass's, then those of all the plan's variants
  int64_t sequences = 0;
  int64_t tokens = 0;
  absl::Duration total_time, forward_time, queue_time, client_time;

  // Returns (zero - variant) / (zero - clean) of the mean losses; none if the plan does not ask for it, or if it is
  // not finite.
  std::optional<double> LossRecovered(const ScorePlan& plan, size_t variant) const;
};

using ScoreEvent = std::variant<ScoreStarted, ScoredSequence, RowsAsked, ScoreEnded>;

// Thread-safe. Destroying it cancels the scoring.
class Scoring {
 public:
  virtual ~Scoring() = default;
  // Returns the next event, if there is one; ScoreEnded is the last. `on_ready` is called when there may be one again.
  virtual std::optional<ScoreEvent> Next() = 0;
  // Takes rows that were asked for. INVALID_ARGUMENT naming the field, as the proto AnsweredRows says; the scoring has
  // then ended with the same error.
  virtual absl::Status Answer(const RowsAnswer& answer) = 0;
  // Says that no more answers follow. If some are due, or become due, the scoring ends with INVALID_ARGUMENT.
  virtual void FinishAnswers() = 0;
  // Ends the scoring: no events follow, and on_ready is not called any more.
  virtual void Cancel() = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_SCORING_H_
