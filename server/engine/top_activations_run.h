// One search for the tokens that excite latents most, while it runs: cuts its dataset into forward passes, runs them on
// the executor's thread, and keeps what its client has to be told.
#ifndef HOOKLINE_SERVER_ENGINE_TOP_ACTIVATIONS_RUN_H_
#define HOOKLINE_SERVER_ENGINE_TOP_ACTIVATIONS_RUN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/capture/top_activations_plan.h"
#include "server/engine/device_run.h"
#include "server/model/model.h"

namespace hookline {

// Thread-safe. A client that does not read holds one checkpoint, the last.
class TopActivationsRun final : public DeviceRun {
 public:
  // `on_ready`: as TopActivationsSearch::Next says, called without a lock but the one that Close takes.
  TopActivationsRun(std::shared_ptr<const TopActivationsPlan> plan, std::function<void()> on_ready);

  Need GetNeed() const override ABSL_LOCKS_EXCLUDED(mutex_);
  void RunNext(Model& model, std::unique_ptr<PauseRoom> room, Judge judge) override ABSL_LOCKS_EXCLUDED(mutex_);
  void End(absl::Status status) override ABSL_LOCKS_EXCLUDED(mutex_);

  std::optional<TopActivationsEvent> Next() ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops everything. on_ready is not called any more once this has returned.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  enum class Phase { kReady, kRunning, kEnded };

  // One forward pass and what it adds to the records, which only the executor's thread does.
  absl::Status AddPass(Model& model, int64_t first_sequence, int64_t sequences);
  TopActivationsCheckpoint Found(int64_t sequences) const;
  void EndLocked(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CallOnReady() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::shared_ptr<const TopActivationsPlan> plan_;
  const absl::Time begun_;

  // Only the executor's thread uses these, one pass at a time.
  std::vector<LatentRecord> records_;
  int64_t ignored_tokens_ = 0;

  // This is held while the callback runs, never together with mutex_.
  absl::Mutex callback_mutex_;
  std::function<void()> on_ready_ ABSL_GUARDED_BY(callback_mutex_);

  mutable absl::Mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kReady;
  int64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_checkpoint_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time waiting_since_ ABSL_GUARDED_BY(mutex_);
  // Messages that the client has not taken, in this order.
  std::optional<TopActivationsStarted> started_ ABSL_GUARDED_BY(mutex_);
  std::optional<TopActivationsCheckpoint> checkpoint_ ABSL_GUARDED_BY(mutex_);
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
  TopActivationsEnded ended_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_TOP_ACTIVATIONS_RUN_H_
