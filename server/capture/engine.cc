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
  RETURN_IF_ERROR(CheckPositive("max_request_sequences", options.max_request_sequences));
  RETURN_IF_ERROR(CheckPositive("max_held_tokens", options.max_held_tokens));
  if (options.max_held_tokens < options.max_request_tokens) {
    return InvalidField("max_held_tokens",
                        absl::StrCat(options.max_held_tokens, " is less than the ", options.max_request_tokens,
                                     " of one message (max_request_tokens)"));
  }
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

absl::StatusOr<CaptureStarted> EngineImpl::Grant(const CaptureRequest& request) const {
  ASSIGN_OR_RETURN(const Replica* replica, FindReplica(request.model));
  ASSIGN_OR_RETURN(const CapturePlan plan, MakeCapturePlan(request, replica->model(), replica->options(), datasets()));
  RETURN_IF_ERROR(CheckSource(request, plan, *replica));
  return StartedOf(plan, plan.position);
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
    for (int64_t i = 0; i < tokens->sequences() && rows < plan.max_budget; ++i) {
      const absl::Span<const uint32_t> ids = (*tokens)[i];
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
  // Looked at again whenever the mutex is released, which AdmitWaiting does for every slab that comes back.
  const auto none_left = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return counted_captures_ == 0 && captures_.empty() && pool_.counts().free == options_.slab_count;
  };
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
