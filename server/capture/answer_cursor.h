// The rows that a paused pass asks for, and how far its client has answered them.
#ifndef HOOKLINE_SERVER_CAPTURE_ANSWER_CURSOR_H_
#define HOOKLINE_SERVER_CAPTURE_ANSWER_CURSOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/capture/score_plan.h"
#include "server/capture/scoring.h"
#include "server/model/evaluation/score_pass.h"

namespace hookline {

// Answers come in the order in which rows were asked for, without gaps. Not thread-safe.
class AnswerCursor {
 public:
  // `asked` is not empty and belongs to a pass over `unit` of `plan`. `plan` and `asked` outlive the cursor, which
  // replaces the rows of `asked`.
  AnswerCursor(const ScorePlan& plan, const ScoreUnit& unit, std::vector<AskedRows>* asked);

  // Returns the rows in the form in which the client is asked for them, and moves them out of `asked`.
  std::vector<RowsAsked> TakeRows(const std::vector<std::vector<uint32_t>>& sequences);

  // Puts the rows of one answer in their place. INVALID_ARGUMENT naming the field of the proto SubstituteRequest.
  absl::Status Add(const RowsAnswer& answer);
  // Returns whether everything is answered.
  bool done() const { return next_ == asked_.size(); }
  // Describes what comes next: `the rows of sequence 3 under variant "sae" at HOOK from position 5 on`.
  std::string Description() const;

 private:
  struct Place {
    int64_t sequence = 0;  // ScorePlan::index
    size_t variant = 0;    // index into the plan's variants
    int64_t tokens = 0;
    int64_t width = 0;
    std::string hook_point;
  };

  absl::Status CheckPlace(const RowsAnswer& answer) const;
  absl::Status CheckValues(const RowsAnswer& answer) const;

  const ScorePlan& plan_;
  std::vector<AskedRows>& asked_;
  std::vector<Place> places_;  // one for each of `asked_`
  size_t next_ = 0;            // index into `asked_`
  int64_t next_position_ = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_ANSWER_CURSOR_H_
