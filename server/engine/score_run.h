// One scoring while it runs: cuts its sequences into forward passes, runs them on the executor's thread, lets its
// client answer rows between their parts, and keeps their scores until the client takes them.
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
#include "server/capture/answer_cursor.h"
#include "server/capture/scoring.h"
#include "server/engine/device_run.h"
#include "server/engine/pause_room.h"
#include "server/model/model.h"

namespace hookline {

// Thread-safe. A client that does not read holds the scores of at most two passes: the next pass runs when half
// of the last one's scores have been taken. A client that does not answer holds one pass on the device, for at
// most ScorePlan::answer_timeout.
class ScoreRun final : public DeviceRun {
 public:
  // Scoring::Next says when `on_ready` is called. No lock is held then except the one that Close takes.
  ScoreRun(std::shared_ptr<const ScorePlan> plan, std::function<void()> on_ready);

  Need GetNeed() const override ABSL_LOCKS_EXCLUDED(mutex_);
  void RunNext(Model& model, std::unique_ptr<PauseRoom> room, Judge judge) override ABSL_LOCKS_EXCLUDED(mutex_);
  void End(absl::Status status) override ABSL_LOCKS_EXCLUDED(mutex_);
  void EndIfSilent(absl::Time now) override ABSL_LOCKS_EXCLUDED(mutex_);

  std::optional<ScoreEvent> Next() ABSL_LOCKS_EXCLUDED(mutex_);
  // Scoring describes these two.
  absl::Status Answer(const RowsAnswer& answer) ABSL_LOCKS_EXCLUDED(mutex_);
  void FinishAnswers() ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops everything. on_ready is not called any more once this has returned.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // kAwaiting: the pass in hand waits for answers.
  enum class Phase { kReady, kRunning, kAwaiting, kEnded };

  // A unit that has begun. Destroy it with no lock held, like its room.
  struct PassInHand {
    ScoreUnit unit;
    std::vector<std::vector<uint32_t>> sequences;
    std::vector<const Variant*> variants;
    std::unique_ptr<ScorePass> pass;
    std::unique_ptr<PauseRoom> room;
  };

  bool MayRun() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns the pass that runs next and enters kRunning; null if none does.
  std::unique_ptr<PassInHand> NextHand(std::unique_ptr<PauseRoom> room) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Begin(Model& model, PassInHand* hand) const;
  void Pause(std::unique_ptr<PassInHand> hand) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Take(PassInHand& hand) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The error of a client that has ended its stream and still owes answers.
  absl::Status NoAnswers() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns the pass in hand, if any, which must be destroyed when the mutex is free.
  std::unique_ptr<PassInHand> EndLocked(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
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
  std::unique_ptr<PassInHand> in_hand_ ABSL_GUARDED_BY(mutex_);  // a paused pass
  std::optional<AnswerCursor> answers_ ABSL_GUARDED_BY(mutex_);  // while kAwaiting
  absl::Time asked_at_ ABSL_GUARDED_BY(mutex_);                  // when the pass paused
  absl::Time last_answer_ ABSL_GUARDED_BY(mutex_);               // when the client last answered, or the pass paused
  bool answers_finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCORE_RUN_H_
