// The order in which a capture's batches hand over their rows, whichever executors compute them.
#ifndef HOOKLINE_SERVER_ENGINE_TURNS_H_
#define HOOKLINE_SERVER_ENGINE_TURNS_H_

#include <cstdint>
#include <map>
#include <optional>

namespace hookline {

// Says when a batch's rows may be handed over.
enum class Turn {
  kWait,  // after those of an earlier batch of their capture
  kNow,
  kNever,  // an earlier batch has lost rows, so that there would be a gap
};

// Not thread-safe; the scheduler's mutex guards it. Each batch of a capture takes a turn when it is formed, and ends it
// when its rows have been handed over or dropped, or when it has none.
class Turns {
 public:
  // `executor` runs the batch.
  int64_t Take(int executor) {
    batches_[next_] = executor;
    return next_++;
  }
  // Records that another executor runs the batch.
  void Move(int64_t turn, int executor) { batches_.at(turn) = executor; }
  // The executor whose batch has its turn; none if no batch is on its way.
  std::optional<int> executor() const {
    return batches_.empty() ? std::nullopt : std::optional<int>(batches_.begin()->second);
  }
  Turn Of(int64_t turn) const {
    if (has_gap_) return Turn::kNever;
    return batches_.begin()->first == turn ? Turn::kNow : Turn::kWait;
  }
  // Ends a turn; with `has_gap`, rows of it were left out. Returns whether this lets other batches go on.
  bool End(int64_t turn, bool has_gap) {
    const bool was_first = batches_.begin()->first == turn;
    batches_.erase(turn);
    has_gap_ |= has_gap;
    return !batches_.empty() && (was_first || has_gap);
  }

 private:
  std::map<int64_t, int> batches_;  // the executors of batches whose turns have not ended, by turn
  int64_t next_ = 0;
  bool has_gap_ = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_TURNS_H_
