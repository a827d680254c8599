// A capture's way through the engine: started, admitted, fed, stopped, ended, released.
#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/capture/engine_impl.h"

namespace hookline {
namespace {

// What a client may stream ahead, in batches: enough that the device never waits for it.
constexpr int64_t kStreamedBatchesAhead = 4;
class CaptureHandle : public Capture {
 public:
  CaptureHandle(EngineImpl* engine, std::shared_ptr<RunningCapture> capture)
      : engine_(engine), capture_(std::move(capture)) {}
  ~CaptureHandle() override { Cancel(); }

  std::optional<CaptureEvent> Next() override { return capture_->queue.Next(); }
  absl::StatusOr<bool> AddSequences(TokenBatch batch) override {
    return engine_->AddSequences(capture_, std::move(batch));
  }
  void FinishSource() override { engine_->FinishSource(capture_); }
  void Cancel() override { engine_->Cancel(capture_); }
  void AddWireTime(absl::Duration duration) override { capture_->queue.AddWireTime(duration); }

 private:
  EngineImpl* const engine_;
  const std::shared_ptr<RunningCapture> capture_;
};

}  // namespace

// A resume needs no sequences where the first capture had taken them all.
absl::Status EngineImpl::CheckSource(const CaptureRequest& request, const CapturePlan& plan,
                                     const Replica& replica) const {
  const auto* tokens = std::get_if<TokenBatch>(&request.source);
  if (tokens == nullptr || (plan.resumes && tokens->sequences.empty())) return absl::OkStatus();
  return CheckTokens(*tokens, "tokens", replica.model(), replica.options());
}

absl::StatusOr<std::shared_ptr<Capture>> EngineImpl::Start(CaptureRequest request, absl::string_view address,
                                                           CaptureCallbacks callbacks) {
  ASSIGN_OR_RETURN(Replica * replica, FindReplica(request.model));
  ASSIGN_OR_RETURN(CapturePlan plan, MakeCapturePlan(request, replica->model(), replica->options(), datasets()));
  RETURN_IF_ERROR(CheckSource(request, plan, *replica));
  // A resumed member of a feed reads on alone.
  const auto* feed = plan.resumes ? nullptr : std::get_if<FeedSource>(&request.source);

  auto lane = std::make_shared<Lane>(plan, replica->options().max_batch_tokens);
  const bool streams = std::holds_alternative<StreamedSource>(request.source);
  if (auto* tokens = std::get_if<TokenBatch>(&request.source)) lane->source.Add(std::move(*tokens));
  if (!streams) lane->source.Finish();

  // The queue's owner is the capture, so it is there while the queue runs this.
  auto released = std::make_shared<RunningCapture*>(nullptr);
  auto capture = std::make_shared<RunningCapture>(std::move(plan), std::string(address), std::move(callbacks),
                                                  [this, released] { Released(*released); });
  *released = capture.get();
  capture->group_slabs = GroupSlabs(capture->plan.hook_points, capture->plan.group_rows, options_.slab_bytes);
  capture->streams = streams;
  capture->ready_since = SteadyNow();
  capture->next_row = capture->plan.position.rows;
  capture->skip_until = capture->plan.position;
  {
    Deferred deferred;
    absl::MutexLock lock(&mu_);
    RETURN_IF_ERROR(CountCapture(address));
    captures_[capture.get()] = capture;
    if (feed != nullptr) {
      if (absl::Status joined = JoinFeed(*feed, capture); !joined.ok()) {
        captures_.erase(capture.get());
        capture->counted = false;
        --counted_captures_;
        if (--captures_by_address_[capture->address] == 0) captures_by_address_.erase(capture->address);
        return joined;
      }
    } else {
      capture->lane = lane;
      admissions_.push_back({lane, {capture}, {}});
    }
  }
  AdmitWaiting();
  return std::make_shared<CaptureHandle>(this, std::move(capture));
}

absl::Status EngineImpl::CountCapture(absl::string_view address) {
  if (draining_) return absl::UnavailableError("the server is shutting down");
  if (counted_captures_ >= options_.max_captures) {
    return absl::ResourceExhaustedError(absl::StrCat("this server has ", counted_captures_, " captures, of at most ",
                                                     options_.max_captures, " (--max-captures); try again later"));
  }
  const auto own = captures_by_address_.find(address);
  const int count = own == captures_by_address_.end() ? 0 : own->second;
  if (count >= options_.max_captures_per_address) {
    return absl::ResourceExhaustedError(absl::StrCat("your address has ", count, " captures, of at most ",
                                                     options_.max_captures_per_address,
                                                     " (--max-captures-per-address); end one of them first"));
  }
  ++counted_captures_;
  ++captures_by_address_[std::string(address)];
  return absl::OkStatus();
}

absl::Status EngineImpl::JoinFeed(const FeedSource& feed, const std::shared_ptr<RunningCapture>& capture) {
  const int64_t needed = std::max<int64_t>(1, feed.start_when_subscribers);
  Replica* replica = ReplicaOf(*capture);
  std::shared_ptr<Lane>& lane = feeds_[{replica, feed.name}];
  if (lane == nullptr) {
    lane = std::make_shared<Lane>(capture->plan, replica->options().max_batch_tokens);
    lane->feed = feed;
    lane->started = false;
  } else {
    const auto differs = [&](absl::string_view what) {
      return absl::FailedPreconditionError(absl::StrCat("feed: \"", feed.name, "\" is there with another ", what,
                                                        "; ask for the same, or name another feed"));
    };
    if (!(lane->feed->dataset == feed.dataset)) return differs("dataset part");
    if (lane->deterministic != capture->plan.deterministic) return differs("deterministic");
    if (std::max<int64_t>(1, lane->feed->start_when_subscribers) != needed) return differs("start_when_subscribers");
  }
  capture->lane = lane;
  if (lane->started) {
    admissions_.push_back({lane, {capture}, {}});
    return absl::OkStatus();
  }
  int64_t slabs = capture->plan.window_slabs;
  for (const auto& member : lane->waiting_members) slabs += member->plan.window_slabs;
  if (slabs > options_.slab_count) {
    if (lane->waiting_members.empty()) feeds_.erase({replica, feed.name});
    capture->lane = nullptr;
    return absl::ResourceExhaustedError(absl::StrCat("feed: the first members of \"", feed.name, "\" together need ",
                                                     slabs, " slabs, but the server has ", options_.slab_count,
                                                     " (--slab-count); ask for fewer hook points or members"));
  }
  lane->waiting_members.push_back(capture);
  if (static_cast<int64_t>(lane->waiting_members.size()) >= needed) {
    lane->started = true;
    admissions_.push_back({lane, std::move(lane->waiting_members), {}});
    lane->waiting_members.clear();
  }
  return absl::OkStatus();
}

void EngineImpl::AdmitWaiting() {
  Deferred deferred;
  absl::MutexLock lock(&mu_);
  while (true) {
    const auto found = NextAdmission(&deferred);
    if (found == admissions_.end()) return;
    Admission next = std::move(*found);
    const bool passes = found != admissions_.begin();
    admissions_.erase(found);
    for (const auto& capture : next.captures) {
      if (passes) admissions_.front().passed_by.push_back(capture);
      Admit(capture, *next.lane, &deferred);
    }
    if (!next.lane->receivers.empty()) {
      Replica* replica = ReplicaOf(*next.captures.front());
      replica->AddLane(next.lane);
      MaybeEndLane(*next.lane, &deferred);
    }
    deferred.Drop(std::move(next));
  }
}

// The oldest if there is room for it. Otherwise one that came later, or slow readers could, by keeping the oldest out,
// keep everybody out. All that pass it hold no more together than leaves it its slabs once those who were there before
// have ended, so that it is not kept out by them for ever; and no more than the largest window, a quarter of all.
std::deque<EngineImpl::Admission>::iterator EngineImpl::NextAdmission(Deferred* deferred) {
  if (admissions_.empty()) return admissions_.end();
  const auto slabs_of = [](const Admission& admission) {
    int64_t slabs = 0;
    for (const auto& capture : admission.captures) slabs += capture->plan.window_slabs;
    return slabs;
  };
  const int64_t free = pool_.counts().free;
  Admission& oldest = admissions_.front();
  if (slabs_of(oldest) <= free) return admissions_.begin();
  int64_t may_pass = std::min(options_.slab_count / 4, options_.slab_count - slabs_of(oldest));
  std::vector<std::weak_ptr<RunningCapture>> still_there;
  for (const std::weak_ptr<RunningCapture>& weak : oldest.passed_by) {
    std::shared_ptr<RunningCapture> passed = weak.lock();
    if (passed == nullptr || passed->window->held_slabs() == 0) continue;
    may_pass -= passed->window->held_slabs();
    still_there.push_back(weak);
    deferred->Drop(std::move(passed));
  }
  oldest.passed_by = std::move(still_there);
  return std::find_if(std::next(admissions_.begin()), admissions_.end(),
                      [&](const Admission& later) { return slabs_of(later) <= std::min(free, may_pass); });
}

void EngineImpl::Admit(const std::shared_ptr<RunningCapture>& capture, Lane& lane, Deferred* deferred) {
  const absl::Time now = SteadyNow();
  capture->queue_time += now - capture->ready_since;
  capture->ready_since = now;
  std::weak_ptr<RunningCapture> weak = capture;
  capture->window = pool_.TryReserve(capture->plan.window_slabs, [this, weak] {
    if (std::shared_ptr<RunningCapture> owner = weak.lock()) SlabReturned(owner);
  });
  if (lane.feed.has_value()) {
    // Rows begin with the sequence that the feed takes next.
    capture->skip_until.sequence = capture->skip_until.batch_sequence = lane.source.next_index();
  }
  deferred->Run(
      [capture, started = StartedOf(capture->plan, capture->skip_until)] { capture->queue.PushStarted(started); });
  lane.receivers.push_back(capture);
  if (capture->next_row >= capture->plan.max_budget) {
    StopCapture(capture, StopReason::kBudget, absl::OkStatus(), deferred);
  }
}

CaptureStarted EngineImpl::StartedOf(const CapturePlan& plan, const ResumePosition& position) const {
  CaptureStarted started;
  started.model = plan.model->info().name;
  started.fingerprint = plan.model->info().fingerprint;
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) {
    started.hook_points.push_back(
        {hook_point.name, hook_point.width, hook_point.budget, hook_point.clipped, hook_point.start});
  }
  started.dtype = plan.dtype;
  started.max_message_bytes = plan.max_message_bytes;
  started.next_sequence = position.batch_sequence;
  started.window_bytes = plan.window_slabs * options_.slab_bytes;
  started.resume_token = EncodeResumeToken(plan.digests, position);
  return started;
}

void EngineImpl::StopCapture(const std::shared_ptr<RunningCapture>& capture, StopReason reason, absl::Status status,
                             Deferred* deferred) {
  if (capture->ended) return;
  if (capture->stop.has_value()) {
    // A source may end while the batch that fills the budgets is on its way.
    const bool filled = reason == StopReason::kBudget && capture->stop->reason == StopReason::kSourceEnded;
    if (!filled && reason != StopReason::kCancelled && reason != StopReason::kShuttingDown) return;
  }
  capture->stop = CaptureStop{reason, std::move(status)};
  if (capture->window == nullptr && reason != StopReason::kCancelled) {
    deferred->Run(
        [capture, started = StartedOf(capture->plan, capture->plan.position)] { capture->queue.PushStarted(started); });
  }
  for (auto it = admissions_.begin(); it != admissions_.end();) {
    auto& waiting = it->captures;
    waiting.erase(std::remove(waiting.begin(), waiting.end(), capture), waiting.end());
    it = waiting.empty() ? admissions_.erase(it) : std::next(it);
  }
  LeaveLane(capture, deferred);
  if (capture->waiting != nullptr) ReplicaOf(*capture)->Resume(std::exchange(capture->waiting, nullptr));
  MaybeEnd(capture, deferred);
}

void EngineImpl::LeaveLane(const std::shared_ptr<RunningCapture>& capture, Deferred* deferred) {
  std::shared_ptr<Lane> lane = std::exchange(capture->lane, nullptr);
  if (lane == nullptr) return;
  for (auto* members : {&lane->receivers, &lane->waiting_members}) {
    members->erase(std::remove(members->begin(), members->end(), capture), members->end());
  }
  const bool expected = std::any_of(admissions_.begin(), admissions_.end(),
                                    [&](const Admission& admission) { return admission.lane == lane; });
  if (lane->receivers.empty() && lane->waiting_members.empty() && !expected) {
    CloseFeed(*lane);
    ReplicaOf(*capture)->RemoveLane(lane.get());
  } else {
    ReplicaOf(*capture)->Wake();
  }
  deferred->Drop(std::move(lane));
}

void EngineImpl::CloseFeed(const Lane& lane) {
  for (auto it = feeds_.begin(); it != feeds_.end(); ++it) {
    if (it->second.get() == &lane) {
      feeds_.erase(it);
      return;
    }
  }
}

void EngineImpl::MaybeEnd(const std::shared_ptr<RunningCapture>& capture, Deferred* deferred) {
  if (!capture->stop.has_value()) return;
  // A server that shuts down waits for nobody; what is in flight is dropped when it arrives.
  const bool at_once = capture->stop->reason == StopReason::kShuttingDown;
  if (!capture->ended && (capture->in_flight == 0 || at_once)) {
    capture->ended = true;
    ++ended_by_reason_[static_cast<size_t>(capture->stop->reason)];
    if (at_once) capture->cancelled = true;
    CaptureEnded ended;
    ended.status = capture->stop->status;
    ended.stop_reason = capture->stop->reason;
    ended.sequences = capture->sequences;
    ended.tokens = capture->tokens;
    ended.batches = capture->batches;
    if (capture->batches > 0) ended.mean_batch_fill = capture->batch_fill_sum / static_cast<double>(capture->batches);
    ended.queue_time = capture->queue_time;
    ended.forward_time = capture->forward_time;
    ended.copy_time = capture->copy_time;
    deferred->Run([capture, ended = std::move(ended), at_once] {
      capture->queue.End(ended, at_once ? EventQueue::Queued::kDrop : EventQueue::Queued::kKeep);
    });
  }
  if (capture->in_flight == 0 && captures_.erase(capture.get()) != 0) {
    deferred->Run([this, capture] {
      if (capture->window != nullptr) {
        capture->window->Close();
      } else {
        AdmitWaiting();  // nobody waits behind it any more
      }
    });
  }
}

void EngineImpl::MaybeEndLane(Lane& lane, Deferred* deferred) {
  if (!lane.source.Ended()) return;
  CloseFeed(lane);
  const std::vector<std::shared_ptr<RunningCapture>> receivers = lane.receivers;
  for (const auto& capture : receivers) {
    StopCapture(capture, StopReason::kSourceEnded, absl::OkStatus(), deferred);
  }
}

void EngineImpl::SlabReturned(const std::shared_ptr<RunningCapture>& capture) {
  absl::MutexLock lock(&mu_);
  Replica* replica = ReplicaOf(*capture);
  if (capture->waiting != nullptr) {
    replica->Resume(std::exchange(capture->waiting, nullptr));
  } else {
    replica->Wake();
  }
}

void EngineImpl::Released(RunningCapture* capture) {
  absl::MutexLock lock(&mu_);
  if (!std::exchange(capture->counted, false)) return;
  --counted_captures_;
  if (--captures_by_address_[capture->address] == 0) captures_by_address_.erase(capture->address);
}

absl::StatusOr<bool> EngineImpl::AddSequences(const std::shared_ptr<RunningCapture>& capture, TokenBatch batch) {
  const Replica* replica = ReplicaOf(*capture);
  if (absl::Status status = CheckTokens(batch, "tokens", replica->model(), replica->options()); !status.ok()) {
    Deferred deferred;
    absl::MutexLock lock(&mu_);
    StopCapture(capture, StopReason::kError, status, &deferred);
    return status;
  }
  absl::MutexLock lock(&mu_);
  // Not an error: the capture may end, by its budget, before its client has sent everything.
  if (capture->lane == nullptr) return true;
  capture->lane->source.Add(std::move(batch));
  ReplicaOf(*capture)->Arrived();
  capture->source_full =
      capture->lane->source.queued_tokens() >= kStreamedBatchesAhead * ReplicaOf(*capture)->options().max_batch_tokens;
  return !capture->source_full;
}

void EngineImpl::FinishSource(const std::shared_ptr<RunningCapture>& capture) {
  Deferred deferred;
  absl::MutexLock lock(&mu_);
  if (capture->lane == nullptr) return;
  capture->lane->source.Finish();
  ReplicaOf(*capture)->Wake();
  if (capture->window != nullptr) MaybeEndLane(*capture->lane, &deferred);
}

void EngineImpl::Cancel(const std::shared_ptr<RunningCapture>& capture) {
  capture->cancelled = true;
  {
    Deferred deferred;
    absl::MutexLock lock(&mu_);
    StopCapture(capture, StopReason::kCancelled, absl::CancelledError("the capture was cancelled"), &deferred);
  }
  capture->queue.Close();
}

}  // namespace hookline
