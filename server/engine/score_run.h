// One scoring while it runs: cuts its sequences into forward passes, runs them on the executor's thread, and keeps
// their scores until the client takes them.
#ifndef HOOKLINE_SERVER_ENGINE_SCORE_RUN_H_
#define HOOKLINE_SERVER_ENGINE_SCORE_RUN_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/capture/scoring.h"
#include "server/engine/device_run.h"
#include "server/model/model.h"

namespace hookline {

// Thread-safe. A client that does not read holds the scores of at most two passes: the next is run when half of those
// before have been taken.
class ScoreRun final : public DeviceRun {
 public:
  // `on_ready`: as Scoring::Next says, called without a lock but the one that Close takes.
  ScoreRun(std::shared_ptr<const ScorePlan> plan, std::function<void()> on_ready);

  int64_t NextPositions() const override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status RunNext(Model& model) override ABSL_LOCKS_EXCLUDED(mutex_);
  void End(absl::Status status) override ABSL_LOCKS_EXCLUDED(mutex_);

  std::optional<ScoreEvent> Next() ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops everything. on_ready is not called any more once this has returned.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  enum class Phase { kReady, kRunning, kEnded };

  bool MayRun() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Compute(Model& model, const ScoreUnit& unit, std::vector<std::vector<uint32_t>>* sequences,
                       std::vector<VariantScores>* scores) const;
  void Take(const ScoreUnit& unit, const std::vector<std::vector<uint32_t>>& sequences,
            std::vector<VariantScores> scores) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndLocked(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CallOnReady() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::shared_ptr<const ScorePlan> plan_;
  const absl::Time begun_;

  // This is held while the callback runs, never together with mutex_.
  absl::Mutex callback_mutex_;
  std::function<void()> on_ready_ ABSL_GUARDED_BY(callback_mutex_);

  mutable absl::Mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kReady;
  std::deque<ScoreEvent> events_ ABSL_GUARDED_BY(mutex_);
  size_t last_pass_events_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t next_variant_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time waiting_since_ ABSL_GUARDED_BY(mutex_);
  ScoreEnded totals_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCORE_RUN_H_
