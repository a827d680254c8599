// Decides who runs next. It holds the lock over captures, the flows of their sequences, feeds and waiting admissions
// (scheduler_state.h); elsewhere ids name them. It is passive: it has no thread and no LibTorch, and clients' threads,
// executors and copiers call it.
//
//   ASSIGN_OR_RETURN(Scheduler::Admitted admitted, scheduler.Admit(model, std::move(plan), client, callbacks));
//
//   while (std::optional<Batch> batch = scheduler.NextBatch(executor)) {   // an executor's thread
//     scheduler.Planned(*batch);
//     scheduler.Launched(executor, passes);
//   }
//
//   scheduler.Computed(executor, computed);                                // its copier's thread
//   scheduler.Delivered(capture, delivered);
#ifndef HOOKLINE_SERVER_ENGINE_SCHEDULER_H_
#define HOOKLINE_SERVER_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/base/clock.h"
#include "server/base/slab_pool.h"
#include "server/base/steady.h"
#include "server/capture/capture.h"
#include "server/capture/capture_status.h"
#include "server/capture/client_identity.h"
#include "server/capture/plan.h"
#include "server/engine/batch.h"
#include "server/engine/event_queue.h"
#include "server/engine/ids.h"
#include "server/engine/options.h"
#include "server/engine/scheduler_state.h"
#include "server/engine/snapshot.h"
#include "server/engine/turns.h"

namespace hookline {

// Thread-safe. Its mutex comes before a slab pool's (LockRank). While the mutex is held, it calls nothing back and
// waits only on its own condition variables.
class Scheduler {
 public:
  // `slab_memory` is options.slab_bytes * options.slab_count bytes. `clock` outlives the scheduler.
  Scheduler(const EngineOptions& options, std::shared_ptr<uint8_t> slab_memory, const Clock* clock);
  ~Scheduler();

  // Add all models before you call anything else.
  ModelId AddModel(ModelSetup setup) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Clients.

  struct Admitted {
    CaptureId id{};
    std::shared_ptr<EventQueue> events;
  };
  // Admits the capture: it runs, or waits for its slabs. Errors are those of Engine::Start.
  absl::StatusOr<Admitted> Admit(ModelId model, CapturePlan plan, const ClientIdentity& client,
                                 CaptureCallbacks callbacks) ABSL_LOCKS_EXCLUDED(mutex_);
  // Adds sequences that were checked. Returns whether there is room for more; if not, on_source_room is called when
  // there is. RESOURCE_EXHAUSTED: captures hold too many tokens; this also ends the capture.
  absl::StatusOr<bool> AddSequences(CaptureId id, TokenBatch batch) ABSL_LOCKS_EXCLUDED(mutex_);
  void FinishSource(CaptureId id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Cancel(CaptureId id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the capture with an error, unless it stops already and no rows of it are on their way.
  void Failed(CaptureId id, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes in a client's scoring or search. `held_tokens` is the number of token ids that it keeps. Errors are those
  // of Engine::StartScore.
  absl::StatusOr<CaptureId> AdmitScore(ModelId model, std::shared_ptr<DeviceRun> run, int64_t held_tokens,
                                       const ClientIdentity& client) ABSL_LOCKS_EXCLUDED(mutex_);
  // Call this when the scoring may have a forward pass to run, or an answer to wait for: a pass has ended or paused, or
  // its client has taken scores or answered rows.
  void ScoreMayRun(CaptureId id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets the scoring. A pass that runs goes on.
  void RemoveScore(CaptureId id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Implements Engine::Drain; `deadline` is a time of SteadyNow.
  void Drain(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends every capture; from now on NextBatch returns none.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Executors.

  // Waits for sequences that can run. Returns none once stopped, or when the executor is lost.
  std::optional<Batch> NextBatch(ExecutorId executor) ABSL_LOCKS_EXCLUDED(mutex_);
  // Does the same without waiting. If it returns none, it sets `look_again` to the time to call it again unless
  // something happens before.
  std::optional<Batch> TryNextBatch(ExecutorId executor, absl::Time* look_again) ABSL_LOCKS_EXCLUDED(mutex_);
  // Records which rows of the batch each member gets. From now on other executors may run its flows' next sequences.
  void Planned(ExecutorId executor, const Batch& batch) ABSL_LOCKS_EXCLUDED(mutex_);
  // Records which forward passes over a batch were launched. Call it before the rows are handed to the copier.
  void Launched(ExecutorId executor, absl::Span<const LaunchedPass> passes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns whether the capture still wants rows, and its sink takes them.
  bool WantsRows(const Recipient& recipient) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Records that the devices of the executor's replica have failed, so that its executors get no more batches. Returns
  // whether the model has other replicas left. The loss of the last one ends every capture with `status`.
  bool ReplicaLost(ExecutorId executor, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives a batch whose rows a lost executor has not handed over to another executor. Returns the batch if none
  // is left.
  std::shared_ptr<Rerun> RunAgain(ExecutorId executor, std::shared_ptr<Rerun> rerun) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Copiers.

  void Computed(ExecutorId executor, const ComputedBatch& batch) ABSL_LOCKS_EXCLUDED(mutex_);
  // Records that every row of the capture from one batch has a slab or was dropped. `staged_bytes` is that of the
  // batch's member.
  void Placed(ExecutorId executor, CaptureId id, int64_t staged_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Says whether the capture's rows of the batch with this turn may be handed over.
  Turn TurnOf(CaptureId id, int64_t turn) const ABSL_LOCKS_EXCLUDED(mutex_);
  struct DeliveredRows {
    int64_t turn = 0;
    absl::Duration copy_time;
    bool has_gap = false;  // some were dropped
  };
  // Records that the capture's rows of a batch are in its queue or were dropped.
  void Delivered(CaptureId id, const DeliveredRows& rows) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Operators. Engine describes these.

  std::vector<CaptureStatus> ListCaptures(const ClientIdentity& client) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns how many captures are admitted before this one; nullopt if it does not wait.
  std::optional<int> CapturesAhead(CaptureId id) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status StopByOperator(CaptureId id, const ClientIdentity& client) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Observers.

  // Fills in everything but `hook_points` and what the devices hold.
  void Snapshot(EngineSnapshot* snapshot) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns the recent seconds per token and block; 0 before the first forward pass.
  double SecondsPerTokenLayer(ModelId model) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Holds the mutex. Actions given to AfterUnlock meanwhile run when it is released.
  class Section;

  void AdmitWaiting() ABSL_LOCKS_EXCLUDED(mutex_);
  // The capture's sink has consumed the final event or been destroyed.
  void Released(CaptureId id) ABSL_LOCKS_EXCLUDED(mutex_);
  void SlabReturned(CaptureId id) ABSL_LOCKS_EXCLUDED(mutex_);
  // A pass with room for this many positions does not pause any more.
  void PauseEnded(ModelId model, int64_t positions) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Batch> NextBatchNow(ExecutorId executor, absl::Time* look_again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WaitUntilIdle(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const EngineOptions options_;
  const Clock* const clock_;
  SlabPool pool_;

  mutable absl::Mutex mutex_;
  SchedulerState state_ ABSL_GUARDED_BY(mutex_);
  SteadyCondVar maybe_idle_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCHEDULER_H_
