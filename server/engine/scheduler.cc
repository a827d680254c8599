#include "server/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/base/lock_order.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"
#include "server/engine/score_run.h"
#include "spdlog/spdlog.h"

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

// Captures end within seconds to minutes; who finds the queue full asks again after some.
constexpr absl::Duration kQueueRetry = absl::Seconds(5);

// How long somebody waits before the log says so, and how often it says who waits, and for whom.
constexpr absl::Duration kWaitLogDelay = absl::Seconds(1);
constexpr absl::Duration kWaitLogInterval = absl::Minutes(1);

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

CaptureStarted StartedOf(CaptureId id, const CapturePlan& plan, const ResumePosition& begin) {
  CaptureStarted started = plan.Started(begin);
  started.capture_id = static_cast<int64_t>(id);
  return started;
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

absl::StatusOr<Scheduler::Admitted> Scheduler::Admit(ModelId model, CapturePlan plan, const ClientIdentity& client,
                                                     CaptureCallbacks callbacks) {
  const bool has_row_quota = QuotaOf(client, options_, &ClientQuotas::rows) >= 0;
  const int64_t rows = has_row_quota ? MostRows(plan) : 0;
  TokenBatch tokens = std::move(plan.tokens);
  const auto shared_plan = std::make_shared<const CapturePlan>(std::move(plan));
  Admitted admitted;
  {
    Section section(this);
    RETURN_IF_ERROR(CheckHeldTokens(tokens.tokens()));
    const std::shared_ptr<ClientShare> share = ShareOf(client);
    RETURN_IF_ERROR(CheckCaptureCount(*share, *shared_plan, rows));
    const CaptureId id{++last_id_};
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
    if (shared_plan->feed.has_value()) {
      RETURN_IF_ERROR(JoinFeed(id, capture));
    } else {
      capture.flow = NewFlow(capture);
      SequenceSource& source = flows_.at(capture.flow).source;
      source.Add(std::move(tokens));
      if (!shared_plan->streams) source.Finish();
      admissions_.push_back({capture.flow, {id}, shared_plan->window_slabs, 2 * shared_plan->group_slabs, {}});
    }
    unreleased_[id] = {client.name, admitted.events, 0, capture.arrived};
    captures_.emplace(id, std::move(capture));
    AdmitNow();
    // Executors look after those who hold what this one may wait for.
    for (ModelQueue& queue : models_) queue.wake.NotifyAll();
  }
  return admitted;
}

std::shared_ptr<ClientShare> Scheduler::ShareOf(const ClientIdentity& client) {
  const absl::Time now = clock_->Now();
  // Those whom nothing refers to, and who have nothing to pay back, are as good as new.
  for (auto it = shares_.begin(); it != shares_.end();) {
    it = it->second.use_count() == 1 && it->second->bucket.IsFull(now) ? shares_.erase(it) : std::next(it);
  }
  std::shared_ptr<ClientShare>& share = shares_[client.name];
  if (share == nullptr) share = std::make_shared<ClientShare>();
  share->identity = client;
  share->bucket.SetLimits(std::max<int64_t>(0, QuotaOf(client, options_, &ClientQuotas::tokens_per_second)),
                          std::max<int64_t>(0, QuotaOf(client, options_, &ClientQuotas::burst_tokens)), now);
  return share;
}

ClientUse Scheduler::UseOf(absl::string_view client) const {
  ClientUse use;
  for (const auto& [id, unreleased] : unreleased_) {
    if (unreleased.client != client) continue;
    const auto capture = captures_.find(id);
    const bool waits = capture != captures_.end() && capture->second.phase == CapturePhase::kWaiting;
    ++(waits ? use.waiting : use.running);
    if (capture == captures_.end()) continue;
    if (capture->second.recipient.window != nullptr) use.slabs += capture->second.recipient.window->held_slabs();
    if (capture->second.recipient.plan->feed.has_value()) ++use.feeds;
  }
  return use;
}

absl::Status Scheduler::CheckCaptureCount(const ClientShare& share, const CapturePlan& plan, int64_t rows) {
  if (draining_) return absl::UnavailableError("the server is shutting down");
  const ClientUse use = UseOf(share.identity.name);
  if (absl::Status status = CheckQuotas(share, use, plan, rows, options_, clock_->Now()); !status.ok()) {
    ++quota_refusals_;
    return status;
  }
  if (use.running + use.waiting >= options_.max_captures_per_address) {
    return absl::ResourceExhaustedError(absl::StrCat("your address has ", use.running + use.waiting,
                                                     " captures, of at most ", options_.max_captures_per_address,
                                                     " (--max-captures-per-address); end one of them first"));
  }
  int64_t waiting = 0;
  for (const auto& [id, capture] : captures_) waiting += capture.phase == CapturePhase::kWaiting ? 1 : 0;
  if (waiting >= options_.max_captures) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat("this server has ", waiting, " captures that wait, of at most ",
                                                  options_.max_captures, " (--max-captures); try again later")),
        kQueueRetry);
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
  flows_.try_emplace(id, id, capture.model, *capture.recipient.plan).first->second.share = capture.share;
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
  int64_t least_slabs = 2 * plan.group_slabs;
  if (const auto feed = feeds_.find(key); feed != feeds_.end()) {
    const Flow& flow = flows_.at(feed->second);
    RETURN_IF_ERROR(CheckSameFeed(flow, plan));
    for (CaptureId member : flow.waiting_members) {
      slabs += Find(member)->recipient.plan->window_slabs;
      least_slabs += 2 * Find(member)->recipient.plan->group_slabs;
    }
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
    admissions_.push_back({flow.id, {id}, plan.window_slabs, 2 * plan.group_slabs, {}});
    return absl::OkStatus();
  }
  flow.waiting_members.push_back(id);
  if (static_cast<int64_t>(flow.waiting_members.size()) >= flow.feed->start_when_subscribers) {
    flow.started = true;
    admissions_.push_back({flow.id, std::exchange(flow.waiting_members, {}), slabs, least_slabs, {}});
  }
  return absl::OkStatus();
}

void Scheduler::AdmitWaiting() {
  Section section(this);
  maybe_idle_.NotifyAll();
  AdmitNow();
}

void Scheduler::AdmitNow() {
  while (const std::optional<ChosenAdmission> chosen = NextAdmission()) {
    Admission next = std::move(admissions_[chosen->index]);
    admissions_.erase(admissions_.begin() + static_cast<std::ptrdiff_t>(chosen->index));
    const bool is_short = SlabsFor(next) < next.slabs;
    for (CaptureId id : next.captures) {
      CaptureState& capture = *Find(id);
      const CapturePlan& plan = *capture.recipient.plan;
      Begin(id, capture, is_short ? 2 * plan.group_slabs : plan.window_slabs);
      if (chosen->index != chosen->oldest) {
        admissions_[chosen->oldest].overtaken_by.push_back(capture.recipient.window);
      }
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
  ShrinkWindows();
}

int64_t Scheduler::SlabsFor(const Admission& admission) const {
  const bool others_wait = std::any_of(admissions_.begin(), admissions_.end(),
                                       [&](const Admission& other) { return other.flow != admission.flow; });
  return others_wait || admission.slabs > pool_.counts().free ? admission.least_slabs : admission.slabs;
}

bool Scheduler::MayRunNow(const Admission& admission) const {
  std::map<std::string, std::pair<int64_t, int64_t>> wanted;  // captures and slabs of each client
  for (CaptureId id : admission.captures) {
    const CaptureState& capture = captures_.at(id);
    auto& [captures, slabs] = wanted[capture.client.name];
    ++captures;
    slabs += 2 * capture.recipient.plan->group_slabs;
  }
  for (const auto& [client, needed] : wanted) {
    if (!MayRun(shares_.at(client)->identity, UseOf(client), needed.first, needed.second, options_)) return false;
  }
  return true;
}

std::optional<Scheduler::ChosenAdmission> Scheduler::NextAdmission() {
  if (admissions_.empty()) return std::nullopt;
  int64_t running = static_cast<int64_t>(unreleased_.size());
  for (const auto& [id, capture] : captures_) running -= capture.phase == CapturePhase::kWaiting ? 1 : 0;
  std::vector<size_t> candidates;  // those that wait for nothing but slabs

  std::vector<int64_t> slabs;
  for (size_t i = 0; i < admissions_.size(); ++i) {
    if (running + static_cast<int64_t>(admissions_[i].captures.size()) > options_.max_captures) continue;
    if (!MayRunNow(admissions_[i])) continue;
    candidates.push_back(i);
    slabs.push_back(SlabsFor(admissions_[i]));
  }
  if (candidates.empty()) return std::nullopt;
  Admission& oldest = admissions_[candidates.front()];
  int64_t held = 0;
  std::vector<std::shared_ptr<SlabWindow>> still_there;
  for (std::shared_ptr<SlabWindow>& window : oldest.overtaken_by) {
    held += window->held_slabs();
    // A window that holds nothing is closed, so destroying it calls nothing.
    if (window->held_slabs() > 0) still_there.push_back(std::move(window));
  }
  oldest.overtaken_by = std::move(still_there);
  const std::optional<size_t> chosen = ChooseAdmission(slabs, pool_.counts().free, options_.slab_count, held);
  if (!chosen.has_value()) return std::nullopt;
  return ChosenAdmission{candidates[*chosen], candidates.front()};
}

void Scheduler::ShrinkWindows() {
  bool slabs_are_short = false;
  for (const Admission& admission : admissions_) {
    slabs_are_short |= admission.least_slabs > pool_.counts().free && MayRunNow(admission);
  }
  if (!slabs_are_short) return;
  for (auto& [id, capture] : captures_) {
    const int64_t least = 2 * capture.recipient.plan->group_slabs;
    if (capture.recipient.window == nullptr || capture.window_slabs <= least) continue;
    capture.window_slabs = least;
    AfterUnlock([window = capture.recipient.window, least] { window->ShrinkTo(least); });
  }
}

void Scheduler::Begin(CaptureId id, CaptureState& capture, int64_t window_slabs) {
  Flow& flow = flows_.at(capture.flow);
  const absl::Time now = clock_->Now();
  capture.phase = CapturePhase::kRunning;
  capture.account.queue_time += now - capture.waiting_since;
  capture.waiting_since = capture.last_sent = now;
  capture.model_tokens_before = QueueOf(capture.model).load.tokens;
  capture.window_slabs = window_slabs;
  capture.recipient.window = pool_.TryReserve(window_slabs, /*on_return=*/[this, id] { SlabReturned(id); });
  if (flow.feed.has_value()) {
    // Rows begin with the sequence that the feed takes next.
    capture.cursor.skip_until.sequence = capture.cursor.skip_until.batch_sequence = flow.source.next_count();
  }
  AfterUnlock([id, events = capture.recipient.events, plan = capture.recipient.plan, begin = capture.cursor.skip_until,
               bytes = window_slabs * options_.slab_bytes] {
    CaptureStarted started = StartedOf(id, *plan, begin);
    started.window_bytes = bytes;
    events->PushStarted(std::move(started));
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
  capture->last_sent = queue.last_arrival = clock_->Now();
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
                                                const ClientIdentity& client) {
  CaptureId id{};
  {
    Section section(this);
    RETURN_IF_ERROR(CheckHeldTokens(held_tokens));
    const std::shared_ptr<ClientShare> share = ShareOf(client);
    RETURN_IF_ERROR(CheckScoreCount(*share));
    id = CaptureId{++last_id_};
    QueueOf(model).scores.Add(id, run);
    scores_[id] = {model, std::move(run), held_tokens, share};
  }
  ScoreMayRun(id);
  return id;
}

absl::Status Scheduler::CheckScoreCount(const ClientShare& share) {
  if (draining_) return absl::UnavailableError("the server is shutting down");
  const absl::Time now = clock_->Now();
  if (const absl::Duration delay = share.bucket.Delay(now); delay > absl::ZeroDuration()) {
    ++quota_refusals_;
    return WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                              "client ", share.identity.name, " has used up its ", share.bucket.tokens_per_second(),
                              " tokens per second (tokens_per_second of its quotas, or --client-tokens-per-second)")),
                          delay);
  }
  const auto own = std::count_if(scores_.begin(), scores_.end(), [&](const auto& score) {
    return score.second.share->identity.name == share.identity.name;
  });
  const int64_t most = MaxRunningCaptures(share.identity, options_);
  if (own < most) return absl::OkStatus();
  ++quota_refusals_;
  return WithRetryAfter(absl::ResourceExhaustedError(
                            absl::StrCat("client ", share.identity.name, " has ", own, " scorings, of at most ", most,
                                         " (captures of its quotas, or --client-captures); end one of them first")),
                        kQueueRetry);
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
    AfterUnlock([id, events = capture->recipient.events, plan = capture->recipient.plan] {
      events->PushStarted(StartedOf(id, *plan, plan->position));
    });
  }
  capture->phase = CapturePhase::kStopping;
  capture->stop_reason = reason;
  capture->stop_status = std::move(status);
  LeaveAdmissions(id);
  LeaveFlow(id, *capture);
  if (capture->unplaced_deliveries > 0)
    AfterUnlock([&on_room = QueueOf(capture->model).setup.on_room, id] { on_room(id); });
  EndIfDone(id);
}

void Scheduler::LeaveAdmissions(CaptureId id) {
  for (auto admission = admissions_.begin(); admission != admissions_.end(); ++admission) {
    const size_t before = admission->captures.size();
    Erase(&admission->captures, id);
    if (admission->captures.size() == before) continue;
    if (!admission->captures.empty()) {
      admission->slabs -= Find(id)->recipient.plan->window_slabs;
      admission->least_slabs -= 2 * Find(id)->recipient.plan->group_slabs;
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
  const bool drop = at_once || capture.drop_queued;
  if (capture.phase == CapturePhase::kStopping && (capture.in_flight == 0 || at_once)) {
    capture.phase = CapturePhase::kEnded;
    ++ended_by_reason_[static_cast<size_t>(capture.stop_reason)];
    AfterUnlock([events = capture.recipient.events,
                 ended = capture.account.Ended(capture.stop_reason, capture.stop_status),
                 drop] { events->End(ended, drop ? EventQueue::Queued::kDrop : EventQueue::Queued::kKeep); });
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
  expiring_.erase(id);
  maybe_idle_.NotifyAll();
  // The executors admit who waited for this one, since the caller may hold locks that must not be held meanwhile.
  for (ModelQueue& queue : models_) queue.wake.NotifyAll();
}

void Scheduler::SlabReturned(CaptureId id) {
  Section section(this);
  const CaptureState* const capture = Find(id);
  if (capture == nullptr) return;
  ModelQueue& queue = QueueOf(capture->model);
  if (capture->unplaced_deliveries > 0) {
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
  return unreleased_.empty() && captures_.empty() && scores_.empty() && pool_.counts().free == options_.slab_count;
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

// --- Who holds what others wait for.

absl::Duration Scheduler::IdleOf(CaptureId id, const Unreleased& unreleased, absl::Time now) const {
  if (unreleased.events->WaitsForSink()) {
    // What it has taken since this was last looked at, it took then or later.
    return unreleased.events->consumed_events() == unreleased.consumed_events ? now - unreleased.last_read
                                                                              : absl::ZeroDuration();
  }
  const auto found = captures_.find(id);
  if (found == captures_.end()) return absl::ZeroDuration();
  const CaptureState& capture = found->second;
  const bool waits_for_tokens = capture.phase == CapturePhase::kRunning && capture.recipient.plan->streams &&
                                capture.in_flight == 0 && capture.flow != kNoFlow &&
                                !flows_.at(capture.flow).source.HasNext();
  return waits_for_tokens ? now - std::max(capture.last_sent, unreleased.last_read) : absl::ZeroDuration();
}

// What a client's captures hold is wanted by whoever could run but for them: by everybody whose own limits let it run,
// and by other captures of a client that waits for its own.
bool Scheduler::IsWanted(absl::string_view client) const {
  for (const Admission& admission : admissions_) {
    if (MayRunNow(admission)) return true;
    for (CaptureId id : admission.captures) {
      if (captures_.at(id).client.name == client) return true;
    }
  }
  return false;
}

void Scheduler::EndStalled(absl::Time now, absl::Time* look_again) {
  for (auto it = expiring_.begin(); it != expiring_.end();) {
    const auto expiring = it++;
    if (now < expiring->second.deadline) {
      *look_again = std::min(*look_again, expiring->second.deadline);
      continue;
    }
    AfterUnlock([events = expiring->second.events] { events->NotifyExpired(); });
    expiring_.erase(expiring);
  }
  std::vector<CaptureId> stalled;
  for (auto& [id, unreleased] : unreleased_) {
    if (const int64_t consumed = unreleased.events->consumed_events(); consumed != unreleased.consumed_events) {
      unreleased.consumed_events = consumed;
      unreleased.last_read = now;
    }
    const auto capture = captures_.find(id);
    if (capture != captures_.end() && capture->second.phase == CapturePhase::kWaiting) continue;
    if (admissions_.empty() || !IsWanted(unreleased.client)) continue;
    const absl::Duration idle = IdleOf(id, unreleased, now);
    if (idle >= options_.stall_timeout) {
      stalled.push_back(id);
    } else {
      *look_again = std::min(*look_again, now + (options_.stall_timeout - idle));
    }
  }
  LogWaiting(now);
  if (!admissions_.empty()) {
    *look_again = std::min(*look_again, std::max(waiting_since_ + kWaitLogDelay, last_wait_log_ + kWaitLogInterval));
  }
  for (CaptureId id : stalled) EndStalledCapture(id, now);
  if (!stalled.empty()) AdmitNow();
}

void Scheduler::EndStalledCapture(CaptureId id, absl::Time now) {
  ++stalled_;
  const std::shared_ptr<EventQueue> events = unreleased_.at(id).events;
  absl::Status status = absl::UnavailableError(
      absl::StrCat("the client has taken and sent nothing for ", absl::FormatDuration(options_.stall_timeout),
                   " (--stall-timeout) while others wait for what this capture holds; continue with the resume token"));
  if (CaptureState* capture = Find(id); capture != nullptr && capture->phase != CapturePhase::kEnded) {
    capture->drop_queued = true;
    if (capture->phase == CapturePhase::kStopping) capture->stop_status = status;
    if (capture->phase == CapturePhase::kStopping) capture->stop_reason = StopReason::kError;
    StopCapture(id, StopReason::kError, status);
  }
  // It counts no more, and what is queued is dropped; the status waits for a client that reads again.
  AfterUnlock([events, status] { events->Abandon(status); });
  unreleased_.erase(id);
  expiring_[id] = {events, now + options_.stall_timeout};
}

void Scheduler::LogWaiting(absl::Time now) {
  if (admissions_.empty()) {
    waiting_since_ = absl::InfiniteFuture();
    return;
  }
  waiting_since_ = std::min(waiting_since_, now);
  if (now - waiting_since_ < kWaitLogDelay || now - last_wait_log_ < kWaitLogInterval) return;
  last_wait_log_ = now;
  std::string holders;
  for (const auto& [name, share] : shares_) {
    const ClientUse use = UseOf(name);
    if (use.running == 0) continue;
    absl::Duration idle;
    for (const auto& [id, unreleased] : unreleased_) {
      if (unreleased.client == name) idle = std::max(idle, IdleOf(id, unreleased, now));
    }
    absl::StrAppend(&holders, holders.empty() ? "" : "; ", name, " has ", use.running, " captures and ", use.slabs,
                    " slabs");
    if (idle >= absl::Seconds(1)) {
      absl::StrAppend(&holders, ", of which one was not read for ",
                      absl::FormatDuration(absl::Trunc(idle, absl::Seconds(1))));
    }
  }
  const std::string line =
      absl::StrCat(admissions_.size(), " captures wait to run, the first for ",
                   absl::FormatDuration(absl::Trunc(now - waiting_since_, absl::Seconds(1))), ", of ",
                   captures_.at(admissions_.front().captures.front()).client.name, ": ", holders);
  AfterUnlock([line] { spdlog::warn("{}", line); });
}

// --- Operators.

std::optional<int> Scheduler::AheadOf(CaptureId id) const {
  int ahead = 0;
  for (const Admission& admission : admissions_) {
    if (std::find(admission.captures.begin(), admission.captures.end(), id) != admission.captures.end()) return ahead;
    ahead += static_cast<int>(admission.captures.size());
  }
  return std::nullopt;
}

std::optional<int> Scheduler::CapturesAhead(CaptureId id) const {
  RankedLock lock(&mu_, LockRank::kScheduler);
  return AheadOf(id);
}

CaptureWait Scheduler::WaitOf(const CaptureState& capture) const {
  if (capture.phase == CapturePhase::kWaiting) return CaptureWait::kAdmission;
  const CaptureId id = capture.recipient.capture;
  const bool has_room = capture.unplaced_deliveries == 0 &&
                        (capture.recipient.window == nullptr ||
                         capture.recipient.window->free_slabs() >= capture.recipient.plan->group_slabs);
  if (!has_room && capture.recipient.events->WaitsForSink()) return CaptureWait::kReader;
  if (capture.flow != kNoFlow && flows_.at(capture.flow).source.HasNext()) return CaptureWait::kDevice;
  if (capture.in_flight > 0) return CaptureWait::kCopy;
  const auto unreleased = unreleased_.find(id);
  if (unreleased != unreleased_.end() && unreleased->second.events->WaitsForSink()) return CaptureWait::kReader;
  return CaptureWait::kSequences;
}

CaptureStatus Scheduler::StatusOf(CaptureId id, const CaptureState& capture, absl::Time now) const {
  const CapturePlan& plan = *capture.recipient.plan;
  CaptureStatus status;
  status.id = static_cast<int64_t>(id);
  status.client = capture.client.name;
  const ModelQueue& queue = models_[static_cast<size_t>(capture.model)];
  status.model = queue.setup.info->name;
  status.source = plan.feed.has_value()             ? absl::StrCat("feed ", plan.feed->name)
                  : plan.dataset.dataset != nullptr ? absl::StrCat("dataset ", plan.dataset.dataset->name())
                  : plan.streams                    ? "stream"
                                                    : "tokens";
  status.rows = std::min(capture.cursor.next_row, plan.max_budget);
  for (const CapturePlan::HookPoint& point : plan.hook_points) {
    status.hook_points.push_back(point.name);
    const int64_t rows = std::min(capture.cursor.next_row, point.budget) - point.start;
    status.new_rows = std::max(status.new_rows, rows);
    status.bytes += rows * point.row_bytes;
  }
  status.age = now - capture.arrived;
  status.waits_for = WaitOf(capture);
  if (const auto unreleased = unreleased_.find(id); unreleased != unreleased_.end()) {
    status.idle = IdleOf(id, unreleased->second, now);
  }
  status.captures_ahead = AheadOf(id).value_or(0);
  if (capture.recipient.window == nullptr) return status;
  status.running = now - capture.waiting_since;
  status.slabs = capture.recipient.window->held_slabs();
  if (const int64_t tokens = queue.load.tokens - capture.model_tokens_before; tokens > 0) {
    status.device_share = static_cast<double>(capture.account.tokens) / static_cast<double>(tokens);
  }
  return status;
}

std::vector<CaptureStatus> Scheduler::ListCaptures(const ClientIdentity& client) const {
  RankedLock lock(&mu_, LockRank::kScheduler);
  const absl::Time now = clock_->Now();
  std::vector<CaptureStatus> captures;
  for (const auto& [id, capture] : captures_) {
    if (client.is_admin || capture.client.name == client.name) captures.push_back(StatusOf(id, capture, now));
  }
  return captures;
}

absl::Status Scheduler::StopByOperator(CaptureId id, const ClientIdentity& client) {
  Section section(this);
  const CaptureState* const capture = Find(id);
  if (capture == nullptr || (!client.is_admin && capture->client.name != client.name)) {
    return absl::NotFoundError(absl::StrCat("id: you have no capture ", static_cast<int64_t>(id),
                                            "; ListCaptures lists those that you may stop"));
  }
  StopCapture(id, StopReason::kError, absl::CancelledError(absl::StrCat("stopped by ", client.name, " (StopCapture)")));
  return absl::OkStatus();
}

// --- Who runs next.

bool Scheduler::HasRoom(CaptureId id) const {
  const CaptureState& capture = captures_.at(id);
  return capture.unplaced_deliveries == 0 &&
         capture.recipient.window->free_slabs() >= capture.recipient.plan->group_slabs;
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
  AdmitNow();
  EndStalled(now, look_again);
  std::vector<Flow*> ready;
  for (FlowId id : std::vector<FlowId>(queue.turn)) {
    const auto found = flows_.find(id);
    if (found == flows_.end()) continue;
    Flow& flow = found->second;
    UpdateWaitingTimes(flow, now);
    DetachLaggards(flow, now, look_again);
    if (!IsReady(flow)) continue;
    if (const absl::Duration delay = flow.share->bucket.Delay(now); delay > absl::ZeroDuration()) {
      *look_again = std::min(*look_again, now + delay);
      continue;
    }
    ready.push_back(&flow);
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
  batch.items = FormBatch(small.empty() ? ready : small, ready, limits);
  int64_t tokens = 0;
  for (const BatchItem& item : batch.items) tokens += item.sequence.length;
  queue.scores.FlowsRun(flows_ready, tokens);
  std::set<FlowId> in_batch;
  for (const BatchItem& item : batch.items) {
    in_batch.insert(item.flow);
    flows_.at(item.flow).share->bucket.Take(item.sequence.length, now);
  }
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
  const std::shared_ptr<ClientShare>& share = scores_.at(turn.id).share;
  share->bucket.Take(turn.positions, clock_->Now());
  share->tokens += turn.positions;
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
    capture.unplaced_deliveries += share.all_placed ? 0 : 1;
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
  --capture.unplaced_deliveries;
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
  snapshot->quota_refusals = quota_refusals_;
  snapshot->captures_stalled = stalled_;
  const absl::Time now = clock_->Now();
  for (const auto& [name, share] : shares_) {
    const ClientUse use = UseOf(name);
    EngineSnapshot::ClientLoad load;
    load.client = name;
    load.is_authenticated = share->identity.is_authenticated;
    load.captures_running = use.running;
    load.captures_waiting = use.waiting;
    load.slabs = use.slabs;
    load.tokens = share->tokens;
    for (const auto& [id, unreleased] : unreleased_) {
      if (unreleased.client != name) continue;
      load.idle_seconds = std::max(load.idle_seconds, absl::ToDoubleSeconds(IdleOf(id, unreleased, now)));
    }
    snapshot->clients.push_back(std::move(load));
  }
  for (const ModelQueue& queue : models_) snapshot->models.push_back(queue.load);
}

double Scheduler::SecondsPerTokenLayer(ModelId model) const {
  RankedLock lock(&mu_, LockRank::kScheduler);
  return models_[static_cast<size_t>(model)].seconds_per_token_layer;
}

}  // namespace hookline
