#include "server/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/base/lock_order.h"
#include "server/base/status.h"
#include "server/engine/score_run.h"

namespace hookline {
namespace {

// The batches that a client may stream ahead: enough that the device never waits for it. It hears of room again when
// half of them have run.
constexpr int64_t kStreamedBatchesAhead = 4;

// One batch is computed while the rows of the one before are copied; more would only delay the next client.
constexpr int kMaxLaunchedBatches = 2;

// Clients that start together arrive within this share of the batch delay. A capture that is alone waits no longer than
// that.
constexpr int kQuietShare = 4;

// How long a drained server waits for sinks to consume the final event.
constexpr absl::Duration kLastWordTime = absl::Seconds(1);

const std::vector<double>& SecondsBounds() {
  static const auto* const bounds =
      new std::vector<double>{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};
  return *bounds;
}
const std::vector<double>& ShareBounds() {
  static const auto* const bounds = new std::vector<double>{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1};
  return *bounds;
}

Histogram EmptyHistogram(const std::vector<double>& bounds) {
  return {bounds, std::vector<uint64_t>(bounds.size() + 1), /*sum=*/0};
}

template <typename T>
void Erase(std::vector<T>* values, const T& value) {
  values->erase(std::remove(values->begin(), values->end(), value), values->end());
}

}  // namespace

class ABSL_SCOPED_LOCKABLE Scheduler::Section {
 public:
  explicit Section(Scheduler* scheduler) ABSL_EXCLUSIVE_LOCK_FUNCTION(scheduler->mu_)
      : scheduler_(scheduler), lock_(&scheduler->mu_, LockRank::kScheduler) {}
  // The lock, declared after the actions, goes before they run.
  ~Section() ABSL_UNLOCK_FUNCTION() { TakeActions(); }

 private:
  struct Actions {
    ~Actions() {
      for (const std::function<void()>& action : list) action();
    }
    std::vector<std::function<void()>> list;
  };

  void TakeActions() ABSL_NO_THREAD_SAFETY_ANALYSIS { actions_.list.swap(scheduler_->after_unlock_); }

  Scheduler* const scheduler_;
  Actions actions_;
  RankedLock lock_;
};

Scheduler::Scheduler(const EngineOptions& options, std::shared_ptr<uint8_t> slab_memory, const Clock* clock)
    : options_(options),
      clock_(clock),
      pool_(std::move(slab_memory), options.slab_bytes, options.slab_count, [this] { AdmitWaiting(); }),
      ended_by_reason_(static_cast<size_t>(StopReason::kError) + 1) {}

Scheduler::~Scheduler() {
  // Windows that are still held call back when they are destroyed.
  Section section(this);
  KeepUntilUnlocked(std::exchange(admissions_, {}));
  KeepUntilUnlocked(std::exchange(captures_, {}));
}

ModelId Scheduler::AddModel(ModelSetup setup) {
  Section section(this);
  ModelQueue& queue = models_.emplace_back(std::move(setup));
  queue.load.model = queue.setup.info->name;
  queue.load.batch_fill = EmptyHistogram(ShareBounds());
  queue.load.forward_seconds = EmptyHistogram(SecondsBounds());
  queue.load.queue_seconds = EmptyHistogram(SecondsBounds());
  return ModelId{static_cast<int>(models_.size()) - 1};
}

void Scheduler::AfterUnlock(std::function<void()> action) { after_unlock_.push_back(std::move(action)); }

CaptureState* Scheduler::Find(CaptureId id) {
  const auto found = captures_.find(id);
  return found == captures_.end() ? nullptr : &found->second;
}

// --- Taking in.

absl::StatusOr<Scheduler::Admitted> Scheduler::Admit(ModelId model, CapturePlan plan, absl::string_view address,
                                                     CaptureCallbacks callbacks) {
  TokenBatch tokens = std::move(plan.tokens);
  const auto shared_plan = std::make_shared<const CapturePlan>(std::move(plan));
  Admitted admitted;
  {
    Section section(this);
    RETURN_IF_ERROR(CheckHeldTokens(tokens.tokens()));
    RETURN_IF_ERROR(CheckCaptureCount(address));
    const CaptureId id{++last_id_};
    admitted.id = id;
    admitted.events = std::make_shared<EventQueue>(std::move(callbacks), [this, id] { Released(id); });
    CaptureState capture;
    capture.model = model;
    capture.address = std::string(address);
    capture.recipient.capture = id;
    capture.recipient.plan = shared_plan;
    capture.recipient.events = admitted.events;
    capture.cursor.next_row = shared_plan->position.rows;
    capture.cursor.skip_until = shared_plan->position;
    capture.waiting_since = clock_->Now();
    if (shared_plan->feed.has_value()) {
      RETURN_IF_ERROR(JoinFeed(id, capture));
    } else {
      capture.flow = NewFlow(capture);
      SequenceSource& source = flows_.at(capture.flow).source;
      source.Add(std::move(tokens));
      if (!shared_plan->streams) source.Finish();
      admissions_.push_back({capture.flow, {id}, shared_plan->window_slabs, {}});
    }
    unreleased_[id] = capture.address;
    captures_.emplace(id, std::move(capture));
  }
  AdmitWaiting();
  return admitted;
}

absl::Status Scheduler::CheckCaptureCount(absl::string_view address) const {
  if (draining_) return absl::UnavailableError("the server is shutting down");
  const int64_t count = static_cast<int64_t>(unreleased_.size());
  if (count >= options_.max_captures) {
    return absl::ResourceExhaustedError(absl::StrCat("this server has ", count, " captures, of at most ",
                                                     options_.max_captures, " (--max-captures); try again later"));
  }
  const auto own = std::count_if(unreleased_.begin(), unreleased_.end(),
                                 [&](const auto& unreleased) { return unreleased.second == address; });
  if (own >= options_.max_captures_per_address) {
    return absl::ResourceExhaustedError(absl::StrCat("your address has ", own, " captures, of at most ",
                                                     options_.max_captures_per_address,
                                                     " (--max-captures-per-address); end one of them first"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckHeldTokens(int64_t more) const {
  if (more == 0) return absl::OkStatus();
  int64_t held = 0;
  for (const auto& [id, flow] : flows_) held += flow.source.held_tokens();
  for (const auto& [id, score] : scores_) held += score.held_tokens;
  if (held + more <= options_.max_held_tokens) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "tokens: this server's captures hold ", held, " tokens, with these ", more, " more than the ",
      options_.max_held_tokens,
      " that it holds at a time (--max-held-tokens); try again later, or send them in smaller messages, by "
      "CaptureStream"));
}

FlowId Scheduler::NewFlow(const CaptureState& capture) {
  const FlowId id{++last_id_};
  flows_.try_emplace(id, id, capture.model, *capture.recipient.plan);
  return id;
}

absl::Status Scheduler::CheckSameFeed(const Flow& flow, const CapturePlan& plan) const {
  const auto differs = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat("feed: \"", plan.feed->name, "\" is there with another ", what,
                                                      "; ask for the same, or name another feed"));
  };
  const auto needed = [](const FeedSource& feed) { return std::max<int64_t>(1, feed.start_when_subscribers); };
  if (!(flow.feed->dataset == plan.feed->dataset)) return differs("dataset part");
  if (flow.deterministic != plan.deterministic) return differs("deterministic");
  if (needed(*flow.feed) != needed(*plan.feed)) return differs("start_when_subscribers");
  return absl::OkStatus();
}

absl::Status Scheduler::JoinFeed(CaptureId id, CaptureState& capture) {
  const CapturePlan& plan = *capture.recipient.plan;
  const std::pair<ModelId, std::string> key(capture.model, plan.feed->name);
  int64_t slabs = plan.window_slabs;
  if (const auto feed = feeds_.find(key); feed != feeds_.end()) {
    const Flow& flow = flows_.at(feed->second);
    RETURN_IF_ERROR(CheckSameFeed(flow, plan));
    for (CaptureId member : flow.waiting_members) slabs += Find(member)->recipient.plan->window_slabs;
  }
  if (slabs > options_.slab_count) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "feed: the first members of \"", plan.feed->name, "\" together need ", slabs, " slabs, but the server has ",
        options_.slab_count, " (--slab-count); ask for fewer hook points or members"));
  }
  const auto [feed, is_first] = feeds_.try_emplace(key, kNoFlow);
  if (is_first) feed->second = NewFlow(capture);
  capture.flow = feed->second;
  Flow& flow = flows_.at(capture.flow);
  if (flow.started) {
    admissions_.push_back({flow.id, {id}, plan.window_slabs, {}});
    return absl::OkStatus();
  }
  flow.waiting_members.push_back(id);
  if (static_cast<int64_t>(flow.waiting_members.size()) >= flow.feed->start_when_subscribers) {
    flow.started = true;
    admissions_.push_back({flow.id, std::exchange(flow.waiting_members, {}), slabs, {}});
  }
  return absl::OkStatus();
}

void Scheduler::AdmitWaiting() {
  Section section(this);
  maybe_idle_.NotifyAll();
  while (const std::optional<size_t> chosen = NextAdmission()) {
    Admission next = std::move(admissions_[*chosen]);
    admissions_.erase(admissions_.begin() + static_cast<std::ptrdiff_t>(*chosen));
    for (CaptureId id : next.captures) {
      CaptureState& capture = *Find(id);
      Begin(id, capture);
      if (*chosen != 0) admissions_.front().overtaken_by.push_back(capture.recipient.window);
    }
    ModelQueue& queue = QueueOf(flows_.at(next.flow).model);
    if (std::find(queue.turn.begin(), queue.turn.end(), next.flow) == queue.turn.end()) queue.turn.push_back(next.flow);
    queue.last_arrival = clock_->Now();
    queue.wake.NotifyAll();
    for (CaptureId id : next.captures) {
      // A resume may have no rows left.
      const CaptureState& capture = *Find(id);
      if (capture.cursor.next_row >= capture.recipient.plan->max_budget) {
        StopCapture(id, StopReason::kBudget, absl::OkStatus());
      }
    }
    EndFlowIfDone(next.flow);
    KeepUntilUnlocked(std::move(next));
  }
}

std::optional<size_t> Scheduler::NextAdmission() {
  if (admissions_.empty()) return std::nullopt;
  int64_t held = 0;
  std::vector<std::shared_ptr<SlabWindow>> still_there;
  for (std::shared_ptr<SlabWindow>& window : admissions_.front().overtaken_by) {
    held += window->held_slabs();
    // A window that holds nothing is closed, so destroying it calls nothing.
    if (window->held_slabs() > 0) still_there.push_back(std::move(window));
  }
  admissions_.front().overtaken_by = std::move(still_there);
  std::vector<int64_t> slabs;
  for (const Admission& admission : admissions_) slabs.push_back(admission.slabs);
  return ChooseAdmission(slabs, pool_.counts().free, options_.slab_count, held);
}

void Scheduler::Begin(CaptureId id, CaptureState& capture) {
  Flow& flow = flows_.at(capture.flow);
  const absl::Time now = clock_->Now();
  capture.phase = CapturePhase::kRunning;
  capture.account.queue_time += now - capture.waiting_since;
  capture.waiting_since = now;
  capture.recipient.window =
      pool_.TryReserve(capture.recipient.plan->window_slabs, /*on_return=*/[this, id] { SlabReturned(id); });
  if (flow.feed.has_value()) {
    // Rows begin with the sequence that the feed takes next.
    capture.cursor.skip_until.sequence = capture.cursor.skip_until.batch_sequence = flow.source.next_index();
  }
  AfterUnlock([events = capture.recipient.events, plan = capture.recipient.plan, begin = capture.cursor.skip_until] {
    events->PushStarted(plan->Started(begin));
  });
  flow.receivers.push_back(id);
}

absl::StatusOr<bool> Scheduler::AddSequences(CaptureId id, TokenBatch batch) {
  Section section(this);
  if (absl::Status status = CheckHeldTokens(batch.tokens()); !status.ok()) {
    StopCapture(id, StopReason::kError, status);
    return status;
  }
  CaptureState* const capture = Find(id);
  // Not an error: the capture may end, by its budget, before its client has sent everything.
  if (capture == nullptr || capture->flow == kNoFlow) return true;
  Flow& flow = flows_.at(capture->flow);
  ModelQueue& queue = QueueOf(capture->model);
  flow.source.Add(std::move(batch));
  queue.last_arrival = clock_->Now();
  queue.wake.NotifyAll();
  capture->source_full = flow.source.queued_tokens() >= kStreamedBatchesAhead * queue.setup.max_batch_tokens;
  return !capture->source_full;
}

void Scheduler::FinishSource(CaptureId id) {
  Section section(this);
  CaptureState* const capture = Find(id);
  if (capture == nullptr || capture->flow == kNoFlow) return;
  flows_.at(capture->flow).source.Finish();
  QueueOf(capture->model).wake.NotifyAll();
  if (capture->phase != CapturePhase::kWaiting) EndFlowIfDone(capture->flow);
}

// --- Scorings.

absl::StatusOr<CaptureId> Scheduler::AdmitScore(ModelId model, std::shared_ptr<ScoreRun> run, int64_t held_tokens,
                                                absl::string_view address) {
  CaptureId id{};
  {
    Section section(this);
    RETURN_IF_ERROR(CheckHeldTokens(held_tokens));
    RETURN_IF_ERROR(CheckCaptureCount(address));
    id = CaptureId{++last_id_};
    QueueOf(model).scores.Add(id, run);
    scores_[id] = {model, std::move(run), held_tokens};
    unreleased_[id] = std::string(address);
  }
  ScoreMayRun(id);
  return id;
}

void Scheduler::ScoreMayRun(CaptureId id) {
  std::shared_ptr<ScoreRun> run;
  {
    RankedLock lock(&mu_, LockRank::kScheduler);
    if (const auto found = scores_.find(id); found != scores_.end()) run = found->second.run;
  }
  if (run == nullptr) return;
  const int64_t positions = run->NextPositions();
  Section section(this);
  const auto found = scores_.find(id);
  if (positions == 0 || found == scores_.end()) return;
  ModelQueue& queue = QueueOf(found->second.model);
  queue.scores.SetWaiting(id, positions);
  queue.wake.NotifyAll();
}

void Scheduler::RemoveScore(CaptureId id) {
  Section section(this);
  const auto found = scores_.find(id);
  if (found == scores_.end()) return;
  KeepUntilUnlocked(QueueOf(found->second.model).scores.Remove(id));
  KeepUntilUnlocked(scores_.extract(found));
  unreleased_.erase(id);
  maybe_idle_.NotifyAll();
}

// --- Ending.

void Scheduler::Cancel(CaptureId id) {
  Section section(this);
  StopCapture(id, StopReason::kCancelled, absl::CancelledError("the capture was cancelled"));
}

void Scheduler::Failed(CaptureId id, absl::Status status) {
  Section section(this);
  StopCapture(id, StopReason::kError, std::move(status));
}

void Scheduler::StopCapture(CaptureId id, StopReason reason, absl::Status status) {
  CaptureState* const capture = Find(id);
  if (capture == nullptr || capture->phase == CapturePhase::kEnded) return;
  if (capture->phase == CapturePhase::kStopping) {
    // A source may end while the batch that fills the budgets is on its way.
    const bool filled = reason == StopReason::kBudget && capture->stop_reason == StopReason::kSourceEnded;
    if (!filled && reason != StopReason::kCancelled && reason != StopReason::kShuttingDown) return;
  }
  if (capture->phase == CapturePhase::kWaiting && reason != StopReason::kCancelled) {
    AfterUnlock(
        [events = capture->recipient.events, plan = capture->recipient.plan] { events->PushStarted(plan->Started()); });
  }
  capture->phase = CapturePhase::kStopping;
  capture->stop_reason = reason;
  capture->stop_status = std::move(status);
  LeaveAdmissions(id);
  LeaveFlow(id, *capture);
  if (capture->unplaced) AfterUnlock([&on_room = QueueOf(capture->model).setup.on_room, id] { on_room(id); });
  EndIfDone(id);
}

void Scheduler::LeaveAdmissions(CaptureId id) {
  for (auto admission = admissions_.begin(); admission != admissions_.end(); ++admission) {
    const size_t before = admission->captures.size();
    Erase(&admission->captures, id);
    if (admission->captures.size() == before) continue;
    if (!admission->captures.empty()) {
      admission->slabs -= Find(id)->recipient.plan->window_slabs;
      return;
    }
    KeepUntilUnlocked(std::move(*admission));
    admissions_.erase(admission);
    return;
  }
}

void Scheduler::LeaveFlow(CaptureId id, CaptureState& capture) {
  const FlowId flow_id = std::exchange(capture.flow, kNoFlow);
  if (flow_id == kNoFlow) return;
  Flow& flow = flows_.at(flow_id);
  ModelQueue& queue = QueueOf(capture.model);
  Erase(&flow.receivers, id);
  Erase(&flow.waiting_members, id);
  const bool is_awaited = std::any_of(admissions_.begin(), admissions_.end(),
                                      [&](const Admission& admission) { return admission.flow == flow_id; });
  if (flow.receivers.empty() && flow.waiting_members.empty() && !is_awaited) {
    const auto feed = std::find_if(feeds_.begin(), feeds_.end(), [&](const auto& f) { return f.second == flow_id; });
    if (feed != feeds_.end()) feeds_.erase(feed);
    Erase(&queue.turn, flow_id);
    flows_.erase(flow_id);
  }
  queue.wake.NotifyAll();
}

void Scheduler::EndIfDone(CaptureId id) {
  const auto found = captures_.find(id);
  if (found == captures_.end()) return;
  CaptureState& capture = found->second;
  // A server that shuts down does not wait; rows in flight are dropped when they arrive.
  const bool at_once = capture.stop_reason == StopReason::kShuttingDown;
  if (capture.phase == CapturePhase::kStopping && (capture.in_flight == 0 || at_once)) {
    capture.phase = CapturePhase::kEnded;
    ++ended_by_reason_[static_cast<size_t>(capture.stop_reason)];
    AfterUnlock([events = capture.recipient.events,
                 ended = capture.account.Ended(capture.stop_reason, capture.stop_status),
                 at_once] { events->End(ended, at_once ? EventQueue::Queued::kDrop : EventQueue::Queued::kKeep); });
  }
  if (capture.phase != CapturePhase::kEnded || capture.in_flight > 0) return;
  AfterUnlock([this, window = capture.recipient.window] {
    if (window != nullptr) {
      window->Close();
    } else {
      AdmitWaiting();  // captures that waited behind it may be admitted now
    }
  });
  KeepUntilUnlocked(captures_.extract(found));
}

void Scheduler::EndFlowIfDone(FlowId id) {
  const auto found = flows_.find(id);
  if (found == flows_.end() || !found->second.source.Ended()) return;
  const auto feed = std::find_if(feeds_.begin(), feeds_.end(), [&](const auto& f) { return f.second == id; });
  if (feed != feeds_.end()) feeds_.erase(feed);
  const std::vector<CaptureId> receivers = found->second.receivers;  // copied, because they leave it
  for (CaptureId receiver : receivers) StopCapture(receiver, StopReason::kSourceEnded, absl::OkStatus());
}

void Scheduler::Released(CaptureId id) {
  Section section(this);
  unreleased_.erase(id);
  maybe_idle_.NotifyAll();
}

void Scheduler::SlabReturned(CaptureId id) {
  Section section(this);
  const CaptureState* const capture = Find(id);
  if (capture == nullptr) return;
  ModelQueue& queue = QueueOf(capture->model);
  if (capture->unplaced) {
    AfterUnlock([&on_room = queue.setup.on_room, id] { on_room(id); });
  } else {
    queue.wake.NotifyAll();
  }
}

void Scheduler::StopAll(const absl::Status& status) {
  draining_ = true;
  for (const auto& [id, score] : scores_) {
    AfterUnlock([run = score.run, status] { run->End(status); });
  }
  std::vector<CaptureId> running;
  for (const auto& [id, capture] : captures_) running.push_back(id);
  for (CaptureId id : running) StopCapture(id, StopReason::kShuttingDown, status);
}

bool Scheduler::IsIdle() const {
  return unreleased_.empty() && captures_.empty() && pool_.counts().free == options_.slab_count;
}

bool Scheduler::WaitUntilIdle(absl::Time deadline) {
  while (!IsIdle()) {
    if (clock_->Now() >= deadline) return false;
    maybe_idle_.WaitUntil(mu_, deadline);
  }
  return true;
}

void Scheduler::Drain(absl::Time deadline) {
  {
    Section section(this);
    draining_ = true;
    if (WaitUntilIdle(deadline)) return;
    StopAll(absl::UnavailableError("the server is shutting down; continue with the resume token"));
  }
  Section section(this);
  WaitUntilIdle(clock_->Now() + kLastWordTime);
}

void Scheduler::Stop() {
  Section section(this);
  StopAll(absl::UnavailableError("the server has stopped"));
  stopped_ = true;
  for (ModelQueue& queue : models_) queue.wake.NotifyAll();
}

// --- Who runs next.

bool Scheduler::HasRoom(CaptureId id) const {
  const CaptureState& capture = captures_.at(id);
  return !capture.unplaced && capture.recipient.window->free_slabs() >= capture.recipient.plan->group_slabs;
}

// A feed whose admitted members have all left waits for those that are still to be admitted.
bool Scheduler::IsReady(const Flow& flow) const {
  if (!flow.source.HasNext() || flow.receivers.empty()) return false;
  for (CaptureId id : flow.receivers) {
    if (!HasRoom(id)) return false;
  }
  return true;
}

void Scheduler::UpdateWaitingTimes(Flow& flow, absl::Time now) {
  if (IsReady(flow)) {
    flow.ready_since = std::min(flow.ready_since, now);
    flow.stalled_since = absl::InfiniteFuture();
    return;
  }
  flow.ready_since = absl::InfiniteFuture();
  int64_t with_room = 0;
  for (CaptureId id : flow.receivers) with_room += HasRoom(id) ? 1 : 0;
  // A feed is stalled if some members keep the others waiting.
  flow.stalled_since = flow.feed.has_value() && flow.source.HasNext() && with_room > 0
                           ? std::min(flow.stalled_since, now)
                           : absl::InfiniteFuture();
}

// A feed's members wait for each other, but not for ever.
void Scheduler::DetachLaggards(Flow& flow, absl::Time now, absl::Time* look_again) {
  if (flow.stalled_since == absl::InfiniteFuture() || flow.feed->on_lag == OnLag::kWait) return;
  const absl::Time patience_ends = flow.stalled_since + options_.feed_stall_timeout;
  if (now < patience_ends) {
    *look_again = std::min(*look_again, patience_ends);
    return;
  }
  std::vector<CaptureId> laggards;
  for (CaptureId id : flow.receivers) {
    if (!HasRoom(id)) laggards.push_back(id);
  }
  const absl::Status status = absl::UnavailableError(
      absl::StrCat("feed \"", flow.feed->name, "\" goes on without this member, which did not read for ",
                   absl::FormatDuration(options_.feed_stall_timeout),
                   " (--feed-stall-timeout); continue alone with the resume token"));
  for (CaptureId id : laggards) StopCapture(id, StopReason::kError, status);
  UpdateWaitingTimes(flow, now);
}

std::optional<Batch> Scheduler::NextBatch(ModelId model) {
  while (true) {
    Section section(this);
    if (stopped_) return std::nullopt;
    ModelQueue& queue = QueueOf(model);
    absl::Time look_again = absl::InfiniteFuture();
    if (std::optional<Batch> batch = FormBatchNow(queue, &look_again)) return batch;
    // Actions that wait for the mutex's release must not wait with this thread.
    if (after_unlock_.empty()) queue.wake.WaitUntil(mu_, look_again);
  }
}

std::optional<Batch> Scheduler::TryNextBatch(ModelId model, absl::Time* look_again) {
  Section section(this);
  *look_again = absl::InfiniteFuture();
  if (stopped_) return std::nullopt;
  return FormBatchNow(QueueOf(model), look_again);
}

std::optional<Batch> Scheduler::FormBatchNow(ModelQueue& queue, absl::Time* look_again) {
  const absl::Time now = clock_->Now();
  std::vector<Flow*> ready;
  for (FlowId id : std::vector<FlowId>(queue.turn)) {
    Flow& flow = flows_.at(id);
    UpdateWaitingTimes(flow, now);
    DetachLaggards(flow, now, look_again);
    if (IsReady(flow)) ready.push_back(&flow);
  }
  if (ready.empty() || queue.launched_batches >= kMaxLaunchedBatches) return TakeScore(queue, /*flows=*/0);
  if (const absl::Time run_at = WhenToRun(queue, ready, now); now < run_at) {
    *look_again = std::min(*look_again, run_at);
    return TakeScore(queue, /*flows=*/0);
  }
  const int64_t flows_ready = static_cast<int64_t>(ready.size());
  if (std::optional<Batch> score = TakeScore(queue, flows_ready)) return score;

  const BatchLimits limits{queue.setup.max_batch_tokens, queue.setup.info->mixes_lengths};
  // Small flows go first, but not twice in a row, so that a stream of them delays the others only a little.
  const std::vector<Flow*> small = queue.small_went_first ? std::vector<Flow*>() : SmallFlows(ready, limits);
  queue.small_went_first = !small.empty();
  Batch batch;
  batch.items = FormBatch(small.empty() ? ready : small, limits);
  int64_t tokens = 0;
  for (const BatchItem& item : batch.items) tokens += item.sequence.length;
  queue.scores.FlowsRun(flows_ready, tokens);
  std::set<FlowId> in_batch;
  for (const BatchItem& item : batch.items) in_batch.insert(item.flow);
  for (FlowId id : queue.turn) {
    if (in_batch.count(id) != 0) AddMembers(flows_.at(id), now, &batch);
  }
  // The flow that gave the first sequence goes to the end of the line.
  Erase(&queue.turn, batch.items.front().flow);
  queue.turn.push_back(batch.items.front().flow);
  return batch;
}

// Sequences that do not fill a batch wait a moment for the next sequences of other captures, and for captures that are
// about to begin.
absl::Time Scheduler::WhenToRun(const ModelQueue& queue, const std::vector<Flow*>& ready, absl::Time now) const {
  int64_t queued_tokens = 0;
  absl::Time oldest = absl::InfiniteFuture();
  for (const Flow* flow : ready) {
    // A dataset fills batches by itself, and a deterministic flow shares no batch.
    if (flow->source.queued_tokens() == 0 || flow->deterministic) return now;
    queued_tokens += flow->source.queued_tokens();
    oldest = std::min(oldest, flow->ready_since);
  }
  if (queued_tokens >= queue.setup.max_batch_tokens) return now;
  bool more_may_come = false;
  for (FlowId id : queue.turn) {
    const Flow& flow = flows_.at(id);
    more_may_come |= !flow.source.Ended() && std::find(ready.begin(), ready.end(), &flow) == ready.end();
  }
  const absl::Time patience_ends = oldest + options_.max_batch_delay;
  if (more_may_come) return patience_ends;
  return std::min(patience_ends, queue.last_arrival + options_.max_batch_delay / kQuietShare);
}

void Scheduler::AddMembers(Flow& flow, absl::Time now, Batch* batch) {
  ModelQueue& queue = QueueOf(flow.model);
  queue.load.queue_seconds.Add(absl::ToDoubleSeconds(now - flow.ready_since));
  for (CaptureId id : flow.receivers) {
    CaptureState& capture = captures_.at(id);
    capture.account.queue_time += now - std::max(flow.ready_since, capture.waiting_since);
    ++capture.in_flight;
    batch->members.push_back({capture.recipient, flow.id, capture.cursor});
    if (capture.source_full && 2 * flow.source.queued_tokens() < kStreamedBatchesAhead * queue.setup.max_batch_tokens) {
      capture.source_full = false;
      AfterUnlock([events = capture.recipient.events] { events->NotifySourceRoom(); });
    }
  }
  flow.ready_since = absl::InfiniteFuture();
}

std::optional<Batch> Scheduler::TakeScore(ModelQueue& queue, int64_t flows) {
  ScoreQueue::Turn turn = queue.scores.Take(flows);
  if (turn.run == nullptr) return std::nullopt;
  Batch batch;
  batch.score = std::move(turn.run);
  batch.score_id = turn.id;
  return batch;
}

// --- What devices report.

void Scheduler::Launched(ModelId model, const LaunchedPass& pass) {
  Section section(this);
  ModelQueue& queue = QueueOf(model);
  const double fill = static_cast<double>(pass.tokens) / static_cast<double>(pass.positions);
  queue.load.batch_fill.Add(fill);
  queue.load.tokens += pass.tokens;
  ++queue.launched_batches;
  for (const LaunchedPass::Share& share : pass.shares) {
    CaptureState& capture = captures_.at(share.capture);
    ++capture.in_flight;
    capture.unplaced |= !share.all_placed;
    ++capture.account.batches;
    capture.account.batch_fill_sum += fill;
    capture.account.copy_time += share.copy_time;
    capture.account.sequences += share.sequences;
    capture.account.tokens += share.tokens;
  }
}

void Scheduler::BatchDone(const Batch& batch) {
  Section section(this);
  for (const Batch::Member& member : batch.members) {
    const CaptureId id = member.recipient.capture;
    CaptureState& capture = captures_.at(id);
    capture.cursor = member.cursor;
    if (capture.cursor.next_row >= capture.recipient.plan->max_budget) {
      StopCapture(id, StopReason::kBudget, absl::OkStatus());
    }
    Landed(id);
  }
  for (const Batch::Member& member : batch.members) EndFlowIfDone(member.flow);
}

// Counts one batch or delivery of the capture less in flight.
void Scheduler::Landed(CaptureId id) {
  --captures_.at(id).in_flight;
  EndIfDone(id);
}

bool Scheduler::WantsRows(CaptureId id) const {
  RankedLock lock(&mu_, LockRank::kScheduler);
  const auto found = captures_.find(id);
  if (found == captures_.end()) return false;
  const CaptureState& capture = found->second;
  if (capture.phase == CapturePhase::kRunning) return true;
  return capture.phase == CapturePhase::kStopping &&
         (capture.stop_reason == StopReason::kBudget || capture.stop_reason == StopReason::kSourceEnded);
}

void Scheduler::Computed(ModelId model, const ComputedPass& pass) {
  Section section(this);
  ModelQueue& queue = QueueOf(model);
  --queue.launched_batches;
  queue.load.forward_seconds.Add(absl::ToDoubleSeconds(pass.forward_time));
  const double rate = absl::ToDoubleSeconds(pass.forward_time) / (static_cast<double>(pass.tokens) * pass.layers);
  // Recent passes count most.
  double& average = queue.seconds_per_token_layer;
  average = average == 0 ? rate : 0.8 * average + 0.2 * rate;
  for (CaptureId id : pass.captures) captures_.at(id).account.forward_time += pass.forward_time;
  queue.wake.NotifyAll();
}

void Scheduler::Placed(CaptureId id) {
  Section section(this);
  CaptureState& capture = captures_.at(id);
  capture.unplaced = false;
  QueueOf(capture.model).wake.NotifyAll();
}

void Scheduler::Delivered(CaptureId id, absl::Duration copy_time) {
  Section section(this);
  CaptureState& capture = captures_.at(id);
  capture.account.copy_time += copy_time;
  QueueOf(capture.model).wake.NotifyAll();
  Landed(id);
}

// --- Observers.

void Scheduler::Snapshot(EngineSnapshot* snapshot) const {
  const SlabPool::Counts slabs = pool_.counts();
  snapshot->slabs_free = slabs.free;
  snapshot->slabs_reserved = slabs.reserved;
  snapshot->slabs_filled = slabs.filled;
  RankedLock lock(&mu_, LockRank::kScheduler);
  for (const auto& [id, capture] : captures_) {
    ++(capture.recipient.window == nullptr ? snapshot->captures_queued : snapshot->captures_running);
  }
  snapshot->captures_ended = ended_by_reason_;
  for (const ModelQueue& queue : models_) snapshot->models.push_back(queue.load);
}

double Scheduler::SecondsPerTokenLayer(ModelId model) const {
  RankedLock lock(&mu_, LockRank::kScheduler);
  return models_[static_cast<size_t>(model)].seconds_per_token_layer;
}

}  // namespace hookline
