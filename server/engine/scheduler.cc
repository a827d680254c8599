#include "server/engine/scheduler.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/lock_order.h"
#include "server/base/status.h"
#include "server/engine/admission_queue.h"
#include "server/engine/capture_end.h"
#include "server/engine/device_run.h"
#include "server/engine/next_batch.h"
#include "server/engine/rerun.h"
#include "server/engine/stalls.h"
#include "server/engine/status_report.h"

namespace hookline {
namespace {

// The longest that a drained server waits for sinks to consume the final event.
constexpr absl::Duration kLastWordTime = absl::Seconds(1);

}  // namespace

class ABSL_SCOPED_LOCKABLE Scheduler::Section {
 public:
  explicit Section(Scheduler* scheduler) ABSL_EXCLUSIVE_LOCK_FUNCTION(scheduler->mutex_)
      : scheduler_(scheduler), lock_(&scheduler->mutex_, LockRank::kScheduler) {}
  // `lock_` is declared after `actions_`, so it is released before they run.
  ~Section() ABSL_UNLOCK_FUNCTION() { TakeActions(); }

 private:
  struct Actions {
    ~Actions() {
      for (const std::function<void()>& action : list) action();
    }
    std::vector<std::function<void()>> list;
  };

  void TakeActions() ABSL_NO_THREAD_SAFETY_ANALYSIS { actions_.list.swap(scheduler_->state_.after_unlock); }

  Scheduler* const scheduler_;
  Actions actions_;
  RankedLock lock_;
};

Scheduler::Scheduler(const EngineOptions& options, std::shared_ptr<uint8_t> slab_memory, const Clock* clock)
    : options_(options),
      clock_(clock),
      pool_(std::move(slab_memory), options.slab_bytes, options.slab_count, [this] { AdmitWaiting(); }),
      state_(options_, *clock_, pool_,
             {[this](CaptureId id) { SlabReturned(id); }, [this] { AdmitWaiting(); },
              [this](CaptureId id) { ScoreMayRun(id); },
              [this](ModelId model, int64_t positions) { PauseEnded(model, positions); }}) {}

Scheduler::~Scheduler() {
  // Windows that are still held call back when they are destroyed.
  Section section(this);
  for (ModelQueue& queue : state_.models) state_.KeepUntilUnlocked(std::exchange(queue.reruns, {}));
  state_.KeepUntilUnlocked(std::exchange(state_.admissions, {}));
  state_.KeepUntilUnlocked(std::exchange(state_.captures, {}));
}

ModelId Scheduler::AddModel(ModelSetup setup) {
  Section section(this);
  ModelQueue& queue = state_.models.emplace_back(std::move(setup));
  queue.load = NoLoad(*queue.setup.info);
  return ModelId{static_cast<int>(state_.models.size()) - 1};
}

// --- Clients.

absl::StatusOr<Scheduler::Admitted> Scheduler::Admit(ModelId model, CapturePlan plan, const ClientIdentity& client,
                                                     CaptureCallbacks callbacks) {
  const bool has_row_quota = QuotaOf(client, options_, &ClientQuotas::rows) >= 0;
  const int64_t rows = has_row_quota ? MostRows(plan) : 0;
  TokenBatch tokens = std::move(plan.tokens);
  const auto shared_plan = std::make_shared<const CapturePlan>(std::move(plan));
  Admitted admitted;
  {
    Section section(this);
    RETURN_IF_ERROR(CheckHeldTokens(state_, tokens.tokens()));
    const std::shared_ptr<ClientShare> share = state_.ShareOf(client);
    RETURN_IF_ERROR(CheckCaptureCount(state_, *share, *shared_plan, rows));
    const CaptureId id{++state_.last_id};
    admitted.id = id;
    admitted.events = std::make_shared<EventQueue>(std::move(callbacks), [this, id] { Released(id); });
    CaptureState capture;
    capture.model = model;
    capture.client = client;
    capture.share = share;
    capture.recipient.capture = id;
    capture.recipient.plan = shared_plan;
    capture.recipient.events = admitted.events;
    capture.cursor.next_row = shared_plan->position.rows;
    capture.cursor.skip_until = shared_plan->position;
    capture.arrived = capture.waiting_since = clock_->Now();
    for (const CapturePlan::HookPoint& hook_point : shared_plan->hook_points) {
      capture.token_bytes += hook_point.row_bytes;
    }
    if (shared_plan->feed.has_value()) {
      RETURN_IF_ERROR(JoinFeed(state_, id, capture));
    } else {
      capture.flow = state_.NewFlow(capture);
      SequenceSource& source = state_.flows.at(capture.flow).source;
      source.Add(std::move(tokens));
      if (!shared_plan->streams) source.Finish();
      state_.admissions.push_back({capture.flow, {id}, shared_plan->window_slabs, 2 * shared_plan->group_slabs, {}});
    }
    state_.unreleased[id] = {client.name, admitted.events, 0, capture.arrived};
    state_.captures.emplace(id, std::move(capture));
    AdmitNow(state_);
    // The executors end captures that have stalled, which may hold what this one waits for.
    for (ModelQueue& queue : state_.models) queue.WakeOne();
  }
  return admitted;
}

absl::StatusOr<bool> Scheduler::AddSequences(CaptureId id, TokenBatch batch) {
  Section section(this);
  if (absl::Status status = CheckHeldTokens(state_, batch.tokens()); !status.ok()) {
    StopCapture(state_, id, StopReason::kError, status);
    return status;
  }
  CaptureState* const capture = state_.Find(id);
  // This is not an error: the budgets may end a capture before its client has sent everything.
  if (capture == nullptr || capture->flow == kNoFlow) return true;
  Flow& flow = state_.flows.at(capture->flow);
  ModelQueue& queue = state_.QueueOf(capture->model);
  flow.source.Add(std::move(batch));
  capture->last_sent = queue.last_arrival = clock_->Now();
  queue.WakeOne();
  capture->source_full = flow.source.queued_tokens() >= kStreamedBatchesAhead * queue.setup.max_batch_tokens;
  return !capture->source_full;
}

void Scheduler::FinishSource(CaptureId id) {
  Section section(this);
  CaptureState* const capture = state_.Find(id);
  if (capture == nullptr || capture->flow == kNoFlow) return;
  state_.flows.at(capture->flow).source.Finish();
  state_.QueueOf(capture->model).WakeOne();
  if (!capture->life.IsWaiting()) EndFlowIfDone(state_, capture->flow);
}

void Scheduler::Cancel(CaptureId id) {
  Section section(this);
  StopCapture(state_, id, StopReason::kCancelled, absl::CancelledError("the capture was cancelled"));
}

void Scheduler::Failed(CaptureId id, absl::Status status) {
  Section section(this);
  StopCapture(state_, id, StopReason::kError, std::move(status));
}

absl::StatusOr<CaptureId> Scheduler::AdmitScore(ModelId model, std::shared_ptr<DeviceRun> run, int64_t held_tokens,
                                                const ClientIdentity& client) {
  CaptureId id{};
  {
    Section section(this);
    RETURN_IF_ERROR(CheckHeldTokens(state_, held_tokens));
    const std::shared_ptr<ClientShare> share = state_.ShareOf(client);
    RETURN_IF_ERROR(CheckScoreCount(state_, *share));
    id = CaptureId{++state_.last_id};
    state_.QueueOf(model).scores.Add(id, run);
    state_.scores[id] = {model, std::move(run), held_tokens, share, absl::InfiniteFuture()};
  }
  ScoreMayRun(id);
  return id;
}

void Scheduler::ScoreMayRun(CaptureId id) {
  std::shared_ptr<DeviceRun> run;
  {
    RankedLock lock(&mutex_, LockRank::kScheduler);
    if (const auto found = state_.scores.find(id); found != state_.scores.end()) run = found->second.run;
  }
  if (run == nullptr) return;
  const DeviceRun::Need need = run->GetNeed();
  Section section(this);
  const auto found = state_.scores.find(id);
  if (found == state_.scores.end()) return;
  // The run's needs may have changed since it was asked. A time that is too early does no harm; one must not be lost.
  const bool awaits = need.answer_by != absl::InfiniteFuture();
  if (awaits) found->second.answer_by = need.answer_by;
  ModelQueue& queue = state_.QueueOf(found->second.model);
  if (need.positions > 0) queue.scores.SetWaiting(id, need.positions, need.paused);
  if (!awaits && need.positions == 0) return;
  // Only the executor that began the pass can go on with it.
  if (queue.scores.IsPinned(id)) {
    queue.WakeAll();
  } else {
    queue.WakeOne();
  }
}

void Scheduler::RemoveScore(CaptureId id) {
  Section section(this);
  const auto found = state_.scores.find(id);
  if (found == state_.scores.end()) return;
  state_.KeepUntilUnlocked(state_.QueueOf(found->second.model).scores.Remove(id));
  state_.KeepUntilUnlocked(state_.scores.extract(found));
  maybe_idle_.NotifyAll();
}

bool Scheduler::IsIdle() const {
  return state_.unreleased.empty() && state_.captures.empty() && state_.scores.empty() &&
         pool_.counts().free == options_.slab_count;
}

bool Scheduler::WaitUntilIdle(absl::Time deadline) {
  while (!IsIdle()) {
    if (clock_->Now() >= deadline) return false;
    maybe_idle_.WaitUntil(mutex_, deadline);
  }
  return true;
}

void Scheduler::Drain(absl::Time deadline) {
  {
    Section section(this);
    state_.draining = true;
    if (WaitUntilIdle(deadline)) return;
    StopAll(state_, absl::UnavailableError("the server is shutting down; continue with the resume token"));
  }
  Section section(this);
  WaitUntilIdle(clock_->Now() + kLastWordTime);
}

void Scheduler::Stop() {
  Section section(this);
  StopAll(state_, absl::UnavailableError("the server has stopped"));
  state_.stopped = true;
  for (ModelQueue& queue : state_.models) queue.WakeAll();
}

// --- Resources that come back.

void Scheduler::SlabReturned(CaptureId id) {
  Section section(this);
  const CaptureState* const capture = state_.Find(id);
  if (capture == nullptr) return;
  ModelQueue& queue = state_.QueueOf(capture->model);
  state_.ForgetRoom(capture->flow);
  if (capture->unplaced_deliveries > 0) {
    state_.ResumeFirst(id, *capture);
  } else {
    queue.WakeOne();
  }
}

void Scheduler::PauseEnded(ModelId model, int64_t positions) {
  Section section(this);
  ModelQueue& queue = state_.QueueOf(model);
  queue.scores.GiveBack(positions);
  queue.WakeOne();
}

void Scheduler::Released(CaptureId id) {
  Section section(this);
  state_.unreleased.erase(id);
  state_.expiring.erase(id);
  maybe_idle_.NotifyAll();
  // The executors admit captures that waited for this one, since the caller may hold locks that must not be
  // held meanwhile.
  for (ModelQueue& queue : state_.models) queue.WakeOne();
}

void Scheduler::AdmitWaiting() {
  Section section(this);
  maybe_idle_.NotifyAll();
  AdmitNow(state_);
}

// --- Devices.

std::optional<Batch> Scheduler::NextBatch(ExecutorId executor) {
  while (true) {
    Section section(this);
    absl::Time look_again = absl::InfiniteFuture();
    if (state_.stopped) return std::nullopt;
    if (std::optional<Batch> batch = NextBatchNow(executor, &look_again)) return batch;
    if (state_.ExecutorOf(executor).is_lost) return std::nullopt;
    // Actions that run when the mutex is released must not wait as long as this thread does.
    if (!state_.after_unlock.empty()) continue;
    ModelQueue::Executor& own = state_.ExecutorOf(executor);
    own.waits = true;
    own.wake.WaitUntil(mutex_, look_again);
    own.waits = false;
  }
}

std::optional<Batch> Scheduler::TryNextBatch(ExecutorId executor, absl::Time* look_again) {
  Section section(this);
  *look_again = absl::InfiniteFuture();
  if (state_.stopped) return std::nullopt;
  return NextBatchNow(executor, look_again);
}

std::optional<Batch> Scheduler::NextBatchNow(ExecutorId executor, absl::Time* look_again) {
  AdmitNow(state_);
  EndStalled(state_, clock_->Now(), look_again);
  EndSilentScores(state_, clock_->Now(), look_again);
  return FormNextBatch(state_, executor, look_again);
}

void Scheduler::Planned(ExecutorId executor, const Batch& batch) {
  Section section(this);
  for (const Batch::Member& member : batch.members) {
    const CaptureId id = member.recipient.capture;
    CaptureState& capture = state_.captures.at(id);
    capture.cursor = member.cursor;
    if (member.staged_bytes > 0) {
      ++capture.unplaced_deliveries;
      state_.AddStagedBytes(executor, member.staged_bytes);
    }
    if (capture.cursor.next_row >= capture.recipient.plan->max_budget) {
      StopCapture(state_, id, StopReason::kBudget, absl::OkStatus());
    }
    if (!member.has_rows) {
      if (capture.turns.End(member.turn, /*has_gap=*/false)) state_.ResumeFirst(id, capture);
      Landed(state_, id);
    }
    if (const auto flow = state_.flows.find(member.flow); flow != state_.flows.end()) {
      flow->second.is_planning = false;
      flow->second.room.is_known = false;
    }
  }
  for (const Batch::Member& member : batch.members) EndFlowIfDone(state_, member.flow);
  if (ModelQueue& queue = state_.QueueOf(executor.model); queue.left > 1) queue.WakeOne();
}

void Scheduler::Launched(ExecutorId executor, absl::Span<const LaunchedPass> passes) {
  Section section(this);
  ModelQueue& queue = state_.QueueOf(executor.model);
  ++state_.ExecutorOf(executor).launched_batches;
  for (const LaunchedPass& pass : passes) {
    const double fill = static_cast<double>(pass.tokens) / static_cast<double>(pass.positions);
    queue.load.batch_fill.Add(fill);
    queue.load.tokens += pass.tokens;
    for (const LaunchedPass::Share& share : pass.shares) {
      CaptureAccount& account = state_.captures.at(share.capture).account;
      ++account.batches;
      account.batch_fill_sum += fill;
      account.copy_time += share.copy_time;
      account.sequences += share.sequences;
      account.tokens += share.tokens;
    }
  }
}

bool Scheduler::WantsRows(const Recipient& recipient) const {
  if (!recipient.events->TakesChunks()) return false;
  RankedLock lock(&mutex_, LockRank::kScheduler);
  const auto found = state_.captures.find(recipient.capture);
  return found != state_.captures.end() && found->second.life.WantsRows();
}

bool Scheduler::ReplicaLost(ExecutorId executor, const absl::Status& status) {
  Section section(this);
  ModelQueue& queue = state_.QueueOf(executor.model);
  const int replica = state_.SetupOf(executor).replica;
  const int left_before = queue.left;
  for (size_t i = 0; i < queue.executors.size(); ++i) {
    if (queue.setup.executors[i].replica != replica || queue.executors[i].is_lost) continue;
    queue.executors[i].is_lost = true;
    --queue.left;
    for (CaptureId id : queue.scores.PinnedTo(static_cast<int>(i))) {
      state_.AfterUnlock([run = state_.scores.at(id).run, status] { run->End(status); });
    }
  }
  if (queue.left == 0 && left_before > 0) StopAll(state_, status);
  queue.WakeAll();
  return queue.left > 0;
}

std::shared_ptr<Rerun> Scheduler::RunAgain(ExecutorId executor, std::shared_ptr<Rerun> rerun) {
  Section section(this);
  ModelQueue& queue = state_.QueueOf(executor.model);
  if (queue.left == 0) return rerun;
  for (const std::unique_ptr<Delivery>& delivery : rerun->deliveries) {
    state_.AddStagedBytes(executor, -delivery->staged_bytes());
  }
  queue.reruns.push_back(std::move(rerun));
  queue.WakeOne();
  return nullptr;
}

void Scheduler::Computed(ExecutorId executor, const ComputedBatch& batch) {
  Section section(this);
  ModelQueue& queue = state_.QueueOf(executor.model);
  ModelQueue::Executor& own = state_.ExecutorOf(executor);
  --own.launched_batches;
  if (batch.tokens > 0) {
    own.tokens += batch.tokens;
    own.busy.Add(batch.forward_time, clock_->Now());
    queue.load.forward_seconds.Add(absl::ToDoubleSeconds(batch.forward_time));
    const double rate = absl::ToDoubleSeconds(batch.forward_time) / (static_cast<double>(batch.tokens) * batch.layers);
    // Recent batches count most.
    double& average = queue.seconds_per_token_layer;
    average = average == 0 ? rate : 0.8 * average + 0.2 * rate;
    for (CaptureId id : batch.captures) state_.captures.at(id).account.forward_time += batch.forward_time;
  }
  own.wake.NotifyAll();
}

void Scheduler::Placed(ExecutorId executor, CaptureId id, int64_t staged_bytes) {
  Section section(this);
  CaptureState& capture = state_.captures.at(id);
  --capture.unplaced_deliveries;
  state_.ForgetRoom(capture.flow);
  state_.AddStagedBytes(executor, -staged_bytes);
  // Any executor on the device may have waited for its room, even one of another model.
  for (ModelQueue& queue : state_.models) queue.WakeAll();
}

Turn Scheduler::TurnOf(CaptureId id, int64_t turn) const {
  RankedLock lock(&mutex_, LockRank::kScheduler);
  return state_.captures.at(id).turns.Of(turn);
}

void Scheduler::Delivered(CaptureId id, const DeliveredRows& rows) {
  Section section(this);
  CaptureState& capture = state_.captures.at(id);
  capture.account.copy_time += rows.copy_time;
  if (capture.turns.End(rows.turn, rows.has_gap)) state_.ResumeFirst(id, capture);
  state_.QueueOf(capture.model).WakeOne();
  Landed(state_, id);
}

// --- Operators and observers.

std::vector<CaptureStatus> Scheduler::ListCaptures(const ClientIdentity& client) const {
  RankedLock lock(&mutex_, LockRank::kScheduler);
  const absl::Time now = clock_->Now();
  std::vector<CaptureStatus> captures;
  for (const auto& [id, capture] : state_.captures) {
    if (client.is_admin || capture.client.name == client.name) captures.push_back(StatusOf(state_, id, capture, now));
  }
  return captures;
}

std::optional<int> Scheduler::CapturesAhead(CaptureId id) const {
  RankedLock lock(&mutex_, LockRank::kScheduler);
  return hookline::CapturesAhead(state_, id);
}

absl::Status Scheduler::StopByOperator(CaptureId id, const ClientIdentity& client) {
  Section section(this);
  const CaptureState* const capture = state_.Find(id);
  if (capture == nullptr || (!client.is_admin && capture->client.name != client.name)) {
    return absl::NotFoundError(absl::StrCat("id: you have no capture ", static_cast<int64_t>(id),
                                            "; ListCaptures lists those that you may stop"));
  }
  StopCapture(state_, id, StopReason::kError,
              absl::CancelledError(absl::StrCat("stopped by ", client.name, " (StopCapture)")));
  return absl::OkStatus();
}

void Scheduler::Snapshot(EngineSnapshot* snapshot) const {
  const SlabPool::Counts slabs = pool_.counts();
  snapshot->slabs_free = slabs.free;
  snapshot->slabs_reserved = slabs.reserved;
  snapshot->slabs_filled = slabs.filled;
  RankedLock lock(&mutex_, LockRank::kScheduler);
  ReportLoad(state_, snapshot);
}

double Scheduler::SecondsPerTokenLayer(ModelId model) const {
  RankedLock lock(&mutex_, LockRank::kScheduler);
  return state_.QueueOf(model).seconds_per_token_layer;
}

}  // namespace hookline
