// Decides who runs next. It keeps captures, the flows of their sequences, feeds and waiting admissions by value;
// elsewhere ids name them. It is passive: it has no thread and no LibTorch, and clients' threads, executors and copiers
// call it.
//
//   ASSIGN_OR_RETURN(Scheduler::Admitted admitted, scheduler.Admit(model, std::move(plan), client, callbacks));
//
//   while (std::optional<Batch> batch = scheduler.NextBatch(model)) {   // an executor's thread
//     scheduler.Launched(model, pass);                                  // for each forward pass over it
//     scheduler.BatchDone(*batch);
//   }
//
//   scheduler.Computed(model, pass);                                    // a copier's thread
//   scheduler.Delivered(capture, copy_time);
#ifndef HOOKLINE_SERVER_ENGINE_SCHEDULER_H_
#define HOOKLINE_SERVER_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/slab_pool.h"
#include "server/base/steady.h"
#include "server/capture/capture.h"
#include "server/capture/capture_status.h"
#include "server/capture/client_identity.h"
#include "server/capture/plan.h"
#include "server/engine/admission.h"
#include "server/engine/batch.h"
#include "server/engine/capture_state.h"
#include "server/engine/client_share.h"
#include "server/engine/flow.h"
#include "server/engine/ids.h"
#include "server/engine/options.h"
#include "server/engine/quotas.h"
#include "server/engine/score_queue.h"
#include "server/engine/snapshot.h"
#include "server/model/model.h"

namespace hookline {

// Thread-safe. Its mutex comes before a slab pool's (LockRank). While the mutex is held, it calls nothing back and
// waits only on its own condition variables.
class Scheduler {
 public:
  struct ModelSetup {
    const ModelInfo* info = nullptr;  // outlives the scheduler
    int64_t max_batch_tokens = 0;
    // Runs, with no lock held, when rows of the capture that have no slabs may get some or are no longer wanted.
    std::function<void(CaptureId)> on_room;
  };

  // `slab_memory` is options.slab_bytes * options.slab_count bytes. `clock` outlives the scheduler.
  Scheduler(const EngineOptions& options, std::shared_ptr<uint8_t> slab_memory, const Clock* clock);
  ~Scheduler();

  // Call it before anything else.
  ModelId AddModel(ModelSetup setup) ABSL_LOCKS_EXCLUDED(mu_);

  // --- Clients.

  struct Admitted {
    CaptureId id{};
    std::shared_ptr<EventQueue> events;
  };
  // Admits the capture: it runs, or waits for its slabs. Errors of Engine::Start.
  absl::StatusOr<Admitted> Admit(ModelId model, CapturePlan plan, const ClientIdentity& client,
                                 CaptureCallbacks callbacks) ABSL_LOCKS_EXCLUDED(mu_);
  // Adds sequences that were checked. Returns whether there is room for more; if not, on_source_room is called when
  // there is. RESOURCE_EXHAUSTED: captures hold too many tokens; this also ends the capture.
  absl::StatusOr<bool> AddSequences(CaptureId id, TokenBatch batch) ABSL_LOCKS_EXCLUDED(mu_);
  void FinishSource(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends the capture with an error.
  void Failed(CaptureId id, absl::Status status) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes in a scoring of a client. `held_tokens`: ids that it keeps. Errors of Engine::StartScore.
  absl::StatusOr<CaptureId> AdmitScore(ModelId model, std::shared_ptr<ScoreRun> run, int64_t held_tokens,
                                       const ClientIdentity& client) ABSL_LOCKS_EXCLUDED(mu_);
  // Tells that the scoring may have a forward pass to run: one has ended, or its client has taken scores.
  void ScoreMayRun(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets the scoring. A pass that runs goes on.
  void RemoveScore(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  // Engine::Drain; `deadline` is a time of SteadyNow.
  void Drain(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends every capture; from now on NextBatch returns none.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // --- Executors.

  // Waits for sequences that can run. Returns none once stopped.
  std::optional<Batch> NextBatch(ModelId model) ABSL_LOCKS_EXCLUDED(mu_);
  // Does the same without waiting: it may return none, and then the time to look again if nothing else happens before.
  std::optional<Batch> TryNextBatch(ModelId model, absl::Time* look_again) ABSL_LOCKS_EXCLUDED(mu_);
  // Call it before the pass's rows are handed to the copier.
  void Launched(ModelId model, const LaunchedPass& pass) ABSL_LOCKS_EXCLUDED(mu_);
  // Tells that every forward pass over the batch was launched or has failed.
  void BatchDone(const Batch& batch) ABSL_LOCKS_EXCLUDED(mu_);
  // Returns whether rows of the capture are still wanted.
  bool WantsRows(CaptureId id) const ABSL_LOCKS_EXCLUDED(mu_);

  // --- Copiers.

  void Computed(ModelId model, const ComputedPass& pass) ABSL_LOCKS_EXCLUDED(mu_);
  // Tells that a delivery which was launched without slabs for every row has them now, or was dropped.
  void Placed(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  // Tells that the capture's rows of a pass are in its queue or were dropped.
  void Delivered(CaptureId id, absl::Duration copy_time) ABSL_LOCKS_EXCLUDED(mu_);

  // --- Operators; as Engine says.

  std::vector<CaptureStatus> ListCaptures(const ClientIdentity& client) const ABSL_LOCKS_EXCLUDED(mu_);
  // Captures that are admitted before this one, while it waits.
  std::optional<int> CapturesAhead(CaptureId id) const ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status StopByOperator(CaptureId id, const ClientIdentity& client) ABSL_LOCKS_EXCLUDED(mu_);

  // --- Observers.

  // Fills in everything but `hook_points` and what the devices hold.
  void Snapshot(EngineSnapshot* snapshot) const ABSL_LOCKS_EXCLUDED(mu_);
  // Returns the recent seconds per token and block; 0 before the first forward pass.
  double SecondsPerTokenLayer(ModelId model) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Holds the mutex. Actions given to AfterUnlock meanwhile run when it is released.
  class Section;

  // The state that the executors of one model share.
  struct ModelQueue {
    explicit ModelQueue(ModelSetup model_setup) : setup(std::move(model_setup)) {}
    const ModelSetup setup;
    std::vector<FlowId> turn;  // flows with an admitted capture, in the order of their turn
    SteadyCondVar wake;
    int launched_batches = 0;  // not yet computed
    absl::Time last_arrival = absl::InfinitePast();
    bool small_went_first = false;  // in the last batch
    EngineSnapshot::ModelLoad load;
    double seconds_per_token_layer = 0;
    ScoreQueue scores;
  };
  struct ScoreEntry {
    ModelId model{};
    std::shared_ptr<ScoreRun> run;
    int64_t held_tokens = 0;
    std::shared_ptr<ClientShare> share;
  };

  void AfterUnlock(std::function<void()> action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Keeps `value` alive until the mutex is released, because destroying it may call back.
  template <typename T>
  void KeepUntilUnlocked(T value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    AfterUnlock([value = std::make_shared<T>(std::move(value))] {});
  }

  ModelQueue& QueueOf(ModelId model) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return models_[static_cast<size_t>(model)]; }
  // Returns null if the capture has ended and nothing of it is in flight.
  CaptureState* Find(CaptureId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Taking in.
  absl::Status CheckCaptureCount(const ClientShare& share, const CapturePlan& plan, int64_t rows)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The client's share, with what its identity says now.
  absl::Status CheckScoreCount(const ClientShare& share) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::shared_ptr<ClientShare> ShareOf(const ClientIdentity& client) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ClientUse UseOf(absl::string_view client) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // RESOURCE_EXHAUSTED unless clients' flows may hold `more` tokens beside those that they hold.
  absl::Status CheckHeldTokens(int64_t more) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  FlowId NewFlow(const CaptureState& capture) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status JoinFeed(CaptureId id, CaptureState& capture) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckSameFeed(const Flow& flow, const CapturePlan& plan) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Enqueue(FlowId flow, std::vector<CaptureId> captures) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AdmitWaiting() ABSL_LOCKS_EXCLUDED(mu_);
  void AdmitNow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  struct ChosenAdmission {
    size_t index;
    size_t oldest;  // of those that could run but for the slabs; it is overtaken unless it is the chosen one
  };
  std::optional<ChosenAdmission> NextAdmission() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Slabs to reserve for the admission: its least where others wait too, or there are no more.
  int64_t SlabsFor(const Admission& admission) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether its clients' own limits let the admission run; if not, it waits for captures of theirs alone.
  bool MayRunNow(const Admission& admission) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes slabs beyond two row groups back from those that run, while somebody waits for slabs.
  void ShrinkWindows() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Begin(CaptureId id, CaptureState& capture, int64_t window_slabs) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Ending. A capture leaves kRunning in StopCapture, becomes kEnded in EndIfDone, and is forgotten there.
  void StopCapture(CaptureId id, StopReason reason, absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StopAll(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaveAdmissions(CaptureId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaveFlow(CaptureId id, CaptureState& capture) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndIfDone(CaptureId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndFlowIfDone(FlowId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Landed(CaptureId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Released(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  void SlabReturned(CaptureId id) ABSL_LOCKS_EXCLUDED(mu_);
  bool IsIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool WaitUntilIdle(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Who holds what others wait for.
  struct Unreleased;
  void EndStalled(absl::Time now, absl::Time* look_again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // How long the capture has waited for its client to read or to send; zero if it does not.
  absl::Duration IdleOf(CaptureId id, const Unreleased& unreleased, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsWanted(absl::string_view client) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndStalledCapture(CaptureId id, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LogWaiting(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  CaptureStatus StatusOf(CaptureId id, const CaptureState& capture, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  CaptureWait WaitOf(const CaptureState& capture) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<int> AheadOf(CaptureId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Who runs next.
  bool HasRoom(CaptureId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsReady(const Flow& flow) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UpdateWaitingTimes(Flow& flow, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DetachLaggards(Flow& flow, absl::Time now, absl::Time* look_again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The batch of a scoring if it is its turn beside `flows` flows that could run now.
  std::optional<Batch> TakeScore(ModelQueue& queue, int64_t flows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Batch> FormBatchNow(ModelQueue& queue, absl::Time* look_again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Time WhenToRun(const ModelQueue& queue, const std::vector<Flow*>& ready, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddMembers(Flow& flow, absl::Time now, Batch* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const EngineOptions options_;
  const Clock* const clock_;
  SlabPool pool_;

  mutable absl::Mutex mu_;
  std::vector<std::function<void()>> after_unlock_ ABSL_GUARDED_BY(mu_);
  std::deque<ModelQueue> models_ ABSL_GUARDED_BY(mu_);
  std::map<CaptureId, CaptureState> captures_ ABSL_GUARDED_BY(mu_);
  std::map<FlowId, Flow> flows_ ABSL_GUARDED_BY(mu_);
  std::map<CaptureId, ScoreEntry> scores_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<ModelId, std::string>, FlowId> feeds_ ABSL_GUARDED_BY(mu_);
  std::deque<Admission> admissions_ ABSL_GUARDED_BY(mu_);  // oldest first
  // Captures whose sink has neither consumed the final event nor been destroyed. They count against the limits.
  struct Unreleased {
    std::string client;
    std::shared_ptr<EventQueue> events;
    int64_t consumed_events = 0;  // when this was last looked at
    absl::Time last_read;         // when they were last seen to grow
  };
  std::map<CaptureId, Unreleased> unreleased_ ABSL_GUARDED_BY(mu_);
  // Captures that ended because their client did not read; they do not count any more. When the time has passed their
  // transport lets go of what it still holds of them.
  struct Expiring {
    std::shared_ptr<EventQueue> events;
    absl::Time deadline;
  };
  std::map<CaptureId, Expiring> expiring_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::shared_ptr<ClientShare>> shares_ ABSL_GUARDED_BY(mu_);
  int64_t quota_refusals_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t stalled_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time waiting_since_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();  // somebody waits; future: nobody
  absl::Time last_wait_log_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  std::vector<int64_t> ended_by_reason_ ABSL_GUARDED_BY(mu_);
  int64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  SteadyCondVar maybe_idle_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCHEDULER_H_
