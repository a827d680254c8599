#include "server/capture/engine.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/base/status.h"
#include "server/capture/engine_impl.h"
#include "server/capture/selection.h"

namespace hookline {
namespace {

// What a client may stream ahead, in batches: enough that the device never waits for it.
constexpr int64_t kStreamedBatchesAhead = 4;
// How long a drained server waits for sinks to take the end.
constexpr absl::Duration kLastWordTime = absl::Seconds(1);

absl::Status CheckPositive(absl::string_view name, int64_t value) {
  if (value > 0) return absl::OkStatus();
  return InvalidField(name, absl::StrCat(value, " is not positive"));
}

absl::Status CheckOptions(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckPositive("slab_bytes", options.slab_bytes));
  RETURN_IF_ERROR(CheckPositive("slab_count", options.slab_count));
  RETURN_IF_ERROR(CheckPositive("window_slabs", options.window_slabs));
  RETURN_IF_ERROR(CheckPositive("max_request_tokens", options.max_request_tokens));
  RETURN_IF_ERROR(CheckPositive("max_hook_points", options.max_hook_points));
  RETURN_IF_ERROR(CheckPositive("max_rows", options.max_rows));
  RETURN_IF_ERROR(CheckPositive("max_captures", options.max_captures));
  RETURN_IF_ERROR(CheckPositive("max_captures_per_address", options.max_captures_per_address));
  if (options.slab_bytes % 4096 != 0) {
    return InvalidField("slab_bytes", absl::StrCat(options.slab_bytes, " is not a multiple of 4096"));
  }
  if (options.slab_count < 8) {
    return InvalidField("slab_count", absl::StrCat(options.slab_count,
                                                   " is less than 8, of which a capture may have a "
                                                   "quarter"));
  }
  if (options.max_batch_tokens < 0 || options.max_sequence_length < 0 || options.max_pending_bytes < 0) {
    return InvalidField("max_batch_tokens, max_sequence_length, max_pending_bytes", "must not be negative");
  }
  return absl::OkStatus();
}

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

template <typename T>
std::string Names(const std::vector<T>& things) {
  if (things.empty()) return "none";
  return absl::StrJoin(things, ", ", [](std::string* out, const auto& thing) { absl::StrAppend(out, thing); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       std::vector<std::unique_ptr<Model>> models,
                                                       std::vector<std::unique_ptr<const Dataset>> datasets) {
  return EngineImpl::Create(options, std::move(models), std::move(datasets), MakeTransfer);
}

absl::StatusOr<std::unique_ptr<Engine>> EngineImpl::Create(const EngineOptions& options,
                                                           std::vector<std::unique_ptr<Model>> models,
                                                           std::vector<std::unique_ptr<const Dataset>> datasets,
                                                           const TransferFactory& make_transfer) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::set<std::string> names;
  std::string slab_device = "cpu";
  for (const std::unique_ptr<Model>& model : models) {
    if (!names.insert(model->info().name).second) {
      return absl::InvalidArgumentError(absl::StrCat("two models are named \"", model->info().name, "\""));
    }
    for (const HookPoint& hook_point : model->hook_points().all()) {
      const int64_t row_bytes = hook_point.width * DtypeBytes(Dtype::kFloat32);
      if (row_bytes > options.slab_bytes) {
        return InvalidField("slab_bytes", absl::StrCat(options.slab_bytes, " is less than a row of ", hook_point.name,
                                                       " in model \"", model->info().name, "\", ", row_bytes));
      }
    }
    if (model->info().device != "cpu") slab_device = model->info().device;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<uint8_t> memory,
                   AllocateHostMemory(options.slab_bytes * options.slab_count, slab_device));
  std::unique_ptr<EngineImpl> engine(new EngineImpl(options, std::move(memory), std::move(datasets)));
  for (std::unique_ptr<Model>& model : models) {
    EngineOptions resolved = options;
    const ModelInfo& info = model->info();
    if (resolved.max_batch_tokens == 0) resolved.max_batch_tokens = info.device == "cpu" ? 2048 : 8192;
    resolved.max_sequence_length = resolved.max_sequence_length == 0
                                       ? info.context_length
                                       : std::min(info.context_length, resolved.max_sequence_length);
    ASSIGN_OR_RETURN(std::unique_ptr<Transfer> transfer, make_transfer(info.device));
    engine->replicas_.push_back(
        std::make_unique<Replica>(engine.get(), std::move(model), std::move(transfer), std::move(resolved)));
  }
  return engine;
}

EngineImpl::EngineImpl(const EngineOptions& options, std::shared_ptr<uint8_t> memory,
                       std::vector<std::unique_ptr<const Dataset>> datasets)
    : options_(options),
      datasets_(std::move(datasets)),
      pool_(std::move(memory), options.slab_bytes, options.slab_count, [this] { AdmitWaiting(); }),
      ended_by_reason_(static_cast<size_t>(StopReason::kError) + 1) {}

EngineImpl::~EngineImpl() {
  {
    Deferred deferred;
    absl::MutexLock lock(&mu_);
    draining_ = true;
    std::vector<std::shared_ptr<RunningCapture>> running;
    for (const auto& [key, capture] : captures_) running.push_back(capture);
    for (const auto& capture : running) {
      StopCapture(capture, StopReason::kShuttingDown, absl::UnavailableError("the server has stopped"), &deferred);
    }
    for (const std::unique_ptr<Replica>& replica : replicas_) replica->Stop();
  }
  for (const std::unique_ptr<Replica>& replica : replicas_) replica->Join();
}

std::vector<const Model*> EngineImpl::models() const {
  std::vector<const Model*> models;
  for (const std::unique_ptr<Replica>& replica : replicas_) models.push_back(&replica->model());
  return models;
}

absl::StatusOr<Replica*> EngineImpl::FindReplica(absl::string_view name) const {
  std::vector<std::string> names;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->model().info().name == name) return replica.get();
    names.push_back(replica->model().info().name);
  }
  if (!name.empty() || names.empty()) {
    return absl::NotFoundError(absl::StrCat("model: no model \"", name, "\"; this server has ", Names(names)));
  }
  if (names.size() == 1) return replicas_[0].get();
  return InvalidField("model", absl::StrCat("is empty, but this server has several: ", Names(names)));
}

absl::StatusOr<const Model*> EngineImpl::FindModel(absl::string_view name) const {
  ASSIGN_OR_RETURN(const Replica* replica, FindReplica(name));
  return &replica->model();
}

std::vector<const Dataset*> EngineImpl::datasets() const {
  std::vector<const Dataset*> datasets;
  for (const std::unique_ptr<const Dataset>& dataset : datasets_) datasets.push_back(dataset.get());
  return datasets;
}

absl::StatusOr<const Dataset*> EngineImpl::FindDataset(absl::string_view name) const {
  std::vector<std::string> names;
  for (const std::unique_ptr<const Dataset>& dataset : datasets_) {
    if (dataset->name() == name) return dataset.get();
    names.push_back(dataset->name());
  }
  return absl::NotFoundError(absl::StrCat("name: no dataset \"", name, "\"; this server has ", Names(names)));
}

Replica* EngineImpl::ReplicaOf(const RunningCapture& capture) const {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (&replica->model() == capture.plan.model) return replica.get();
  }
  return nullptr;
}

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
  capture->arrived = absl::Now();
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
      admissions_.push_back({lane, {capture}});
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
    admissions_.push_back({lane, {capture}});
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
    admissions_.push_back({lane, std::move(lane->waiting_members)});
    lane->waiting_members.clear();
  }
  return absl::OkStatus();
}

void EngineImpl::AdmitWaiting() {
  Deferred deferred;
  absl::MutexLock lock(&mu_);
  // In the order of arrival, so that who asks for much is not passed by for ever.
  while (!admissions_.empty()) {
    int64_t slabs = 0;
    for (const auto& capture : admissions_.front().captures) slabs += capture->plan.window_slabs;
    if (slabs > pool_.counts().free) return;
    Admission next = std::move(admissions_.front());
    admissions_.pop_front();
    for (const auto& capture : next.captures) Admit(capture, *next.lane, &deferred);
    if (!next.lane->receivers.empty()) {
      Replica* replica = ReplicaOf(*next.captures.front());
      replica->AddLane(next.lane);
      MaybeEndLane(*next.lane, &deferred);
    }
    deferred.Drop(std::move(next));
  }
}

void EngineImpl::Admit(const std::shared_ptr<RunningCapture>& capture, Lane& lane, Deferred* deferred) {
  std::weak_ptr<RunningCapture> weak = capture;
  capture->window = pool_.TryReserve(capture->plan.window_slabs, [this, weak] {
    if (std::shared_ptr<RunningCapture> owner = weak.lock()) SlabReturned(owner);
  });
  if (lane.feed.has_value()) {
    // Rows begin with the sequence that the feed takes next.
    capture->skip_until.sequence = capture->skip_until.batch_sequence = lane.source.next_index();
  }
  deferred->Run([capture, started = StartedOf(*capture, capture->skip_until)] { capture->queue.PushStarted(started); });
  lane.receivers.push_back(capture);
  if (capture->next_row >= capture->plan.max_budget) {
    StopCapture(capture, StopReason::kBudget, absl::OkStatus(), deferred);
  }
}

CaptureStarted EngineImpl::StartedOf(const RunningCapture& capture, const ResumePosition& position) const {
  const CapturePlan& plan = capture.plan;
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
        [capture, started = StartedOf(*capture, capture->plan.position)] { capture->queue.PushStarted(started); });
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
    deferred->Run([capture] {
      if (capture->window != nullptr) capture->window->Close();
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
  ReplicaOf(*capture)->Wake();
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

absl::StatusOr<CaptureEstimate> EngineImpl::Estimate(const CaptureRequest& request) const {
  ASSIGN_OR_RETURN(const Replica* replica, FindReplica(request.model));
  ASSIGN_OR_RETURN(CapturePlan plan, MakeCapturePlan(request, replica->model(), replica->options(), datasets()));
  RETURN_IF_ERROR(CheckSource(request, plan, *replica));
  CaptureEstimate estimate;
  int64_t rows = plan.position.rows;
  const auto add_sequence = [&](int64_t selected, int64_t tokens) {
    rows = std::min(plan.max_budget, rows + selected);
    ++estimate.sequences;
    estimate.tokens += tokens;
  };
  if (plan.dataset != nullptr) {
    const DatasetSource& source = plan.dataset_source;
    const int64_t length = source.sequence_length + (source.prepend_token_id.has_value() ? 1 : 0);
    const int64_t selected = SelectedPositions(plan.selection, length);
    const int64_t end = source.first_sequence + source.sequence_count;
    for (int64_t i = plan.position.sequence; i < end && rows < plan.max_budget && selected > 0; ++i) {
      add_sequence(selected, length);
    }
  } else if (const auto* tokens = std::get_if<TokenBatch>(&request.source)) {
    int64_t index = plan.position.batch_sequence;
    std::vector<int32_t> positions;
    for (const std::vector<uint32_t>& ids : tokens->sequences) {
      if (rows >= plan.max_budget) break;
      positions.clear();
      SelectPositions(plan.selection, index, ids, &positions);
      int64_t selected = static_cast<int64_t>(positions.size());
      if (index < plan.position.sequence) selected = 0;
      if (index == plan.position.sequence) selected = std::max<int64_t>(0, selected - plan.position.sequence_rows);
      add_sequence(selected, static_cast<int64_t>(ids.size()));
      ++index;
    }
  }
  int deepest = 0;
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) {
    const int64_t own = std::max<int64_t>(0, std::min(rows, hook_point.budget) - hook_point.start);
    estimate.hook_points.push_back({hook_point.name, own, own * hook_point.row_bytes});
    estimate.bytes += own * hook_point.row_bytes;
    deepest = std::max(deepest, plan.model->hook_points()[hook_point.index].layer);
  }
  absl::MutexLock lock(&mu_);
  if (const double seconds = replica->seconds_per_token_layer(); seconds > 0) {
    estimate.time = absl::Seconds(seconds * static_cast<double>(estimate.tokens) * (deepest + 1));
  }
  return estimate;
}

absl::StatusOr<std::string> EngineImpl::RequestDigest(const CaptureRequest& request) const {
  ASSIGN_OR_RETURN(const Replica* replica, FindReplica(request.model));
  ASSIGN_OR_RETURN(CapturePlan plan, MakeCapturePlan(request, replica->model(), replica->options(), datasets()));
  RETURN_IF_ERROR(CheckSource(request, plan, *replica));
  return RequestDigestOf(request, plan);
}

EngineSnapshot EngineImpl::Snapshot() const {
  EngineSnapshot snapshot;
  const SlabPool::Counts slabs = pool_.counts();
  snapshot.slabs_free = slabs.free;
  snapshot.slabs_reserved = slabs.reserved;
  snapshot.slabs_filled = slabs.filled;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [key, capture] : captures_) {
      ++(capture->window == nullptr ? snapshot.captures_queued : snapshot.captures_running);
    }
    snapshot.captures_ended = ended_by_reason_;
    for (const auto& [point, count] : delivered_) {
      snapshot.hook_points.push_back(
          {point.first->info().name, point.first->hook_points()[point.second].name, count.first, count.second});
    }
    for (const std::unique_ptr<Replica>& replica : replicas_) snapshot.models.push_back(replica->load());
  }
  for (size_t i = 0; i < replicas_.size(); ++i) {
    snapshot.models[i].device_memory_bytes = DeviceMemoryBytes(replicas_[i]->model().info().device);
  }
  return snapshot;
}

void EngineImpl::Drain(absl::Time deadline) {
  const auto none_left = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return counted_captures_ == 0; };
  {
    Deferred deferred;
    absl::MutexLock lock(&mu_);
    draining_ = true;
    if (mu_.AwaitWithDeadline(absl::Condition(&none_left), deadline)) return;
    std::vector<std::shared_ptr<RunningCapture>> running;
    for (const auto& [key, capture] : captures_) running.push_back(capture);
    for (const auto& capture : running) {
      StopCapture(capture, StopReason::kShuttingDown,
                  absl::UnavailableError("the server is shutting down; continue with the resume token"), &deferred);
    }
  }
  absl::MutexLock lock(&mu_);
  mu_.AwaitWithTimeout(absl::Condition(&none_left), kLastWordTime);
}

}  // namespace hookline
