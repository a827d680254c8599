#include "server/engine/status_report.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/admission_queue.h"
#include "server/engine/stalls.h"

namespace hookline {
namespace {

const std::vector<double>& SecondsBounds() {
  static const auto* const bounds =
      new std::vector<double>{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};
  return *bounds;
}
const std::vector<double>& ShareBounds() {
  static const auto* const bounds = new std::vector<double>{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1};
  return *bounds;
}

CaptureWait WaitOf(const SchedulerState& state, const CaptureState& capture) {
  if (capture.life.IsWaiting()) return CaptureWait::kAdmission;
  const CaptureId id = capture.recipient.capture;
  const bool has_room = capture.unplaced_deliveries == 0 &&
                        (capture.recipient.window == nullptr ||
                         capture.recipient.window->free_slabs() >= capture.recipient.plan->group_slabs);
  if (!has_room && capture.recipient.events->WaitsForSink()) return CaptureWait::kReader;
  if (capture.flow != kNoFlow && state.flows.at(capture.flow).source.HasNext()) return CaptureWait::kDevice;
  if (capture.life.in_flight() > 0) return CaptureWait::kCopy;
  const auto unreleased = state.unreleased.find(id);
  if (unreleased != state.unreleased.end() && unreleased->second.events->WaitsForSink()) return CaptureWait::kReader;
  return CaptureWait::kSequences;
}

bool IsQueued(const CaptureState& capture) { return capture.recipient.window == nullptr; }

// Returns the load of each of a model's replicas, over all executors of the replica.
std::vector<EngineSnapshot::ReplicaLoad> ReplicaLoads(const ModelQueue& queue, absl::Time now) {
  std::vector<EngineSnapshot::ReplicaLoad> loads;
  for (size_t i = 0; i < queue.executors.size(); ++i) {
    const ModelQueue::Executor& executor = queue.executors[i];
    const auto replica = static_cast<size_t>(queue.setup.executors[i].replica);
    if (replica == loads.size()) loads.emplace_back();
    EngineSnapshot::ReplicaLoad& load = loads[replica];
    load.is_lost |= executor.is_lost;
    load.tokens += executor.tokens;
    // The executors of a pipeline compute at the same time, on different stages.
    load.busy_share = std::max(load.busy_share, executor.busy.At(now));
    load.launched_batches += executor.launched_batches;
  }
  return loads;
}

void ReportModels(const SchedulerState& state, std::vector<EngineSnapshot::ModelLoad>* models) {
  for (const ModelQueue& queue : state.models) {
    models->push_back(queue.load);
    models->back().replicas = ReplicaLoads(queue, state.clock.Now());
  }
  const auto load_of = [models](ModelId model) -> EngineSnapshot::ModelLoad& {
    return (*models)[static_cast<size_t>(model)];
  };
  for (const auto& [id, capture] : state.captures) load_of(capture.model).captures_queued += IsQueued(capture) ? 1 : 0;
  for (const auto& [id, score] : state.scores) {
    ++load_of(score.model).scores;
    load_of(score.model).tokens_queued += score.held_tokens;
  }
  for (const auto& [id, flow] : state.flows) load_of(flow.model).tokens_queued += flow.source.queued_tokens();
}

}  // namespace

CaptureStatus StatusOf(const SchedulerState& state, CaptureId id, const CaptureState& capture, absl::Time now) {
  const CapturePlan& plan = *capture.recipient.plan;
  CaptureStatus status;
  status.id = static_cast<int64_t>(id);
  status.client = capture.client.name;
  const ModelQueue& queue = state.QueueOf(capture.model);
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
  status.waits_for = WaitOf(state, capture);
  if (const auto unreleased = state.unreleased.find(id); unreleased != state.unreleased.end()) {
    status.idle = IdleOf(state, id, unreleased->second, now);
  }
  status.captures_ahead = CapturesAhead(state, id).value_or(0);
  if (capture.recipient.window == nullptr) return status;
  status.running = now - capture.waiting_since;
  status.slabs = capture.recipient.window->held_slabs();
  if (const int64_t tokens = queue.load.tokens - capture.model_tokens_before; tokens > 0) {
    status.device_share = static_cast<double>(capture.account.tokens) / static_cast<double>(tokens);
  }
  return status;
}

void ReportLoad(const SchedulerState& state, EngineSnapshot* snapshot) {
  ReportModels(state, &snapshot->models);
  for (const auto& [id, capture] : state.captures) {
    ++(IsQueued(capture) ? snapshot->captures_queued : snapshot->captures_running);
  }
  snapshot->captures_ended = state.ended_by_reason;
  snapshot->captures_stalled = state.stalled;
  const absl::Time now = state.clock.Now();
  for (const auto& [name, share] : state.shares) {
    const ClientUse use = state.UseOf(name);
    EngineSnapshot::ClientLoad load;
    load.client = name;
    load.is_authenticated = share->identity.is_authenticated;
    load.captures_running = use.running;
    load.captures_waiting = use.waiting;
    load.slabs = use.slabs;
    load.tokens = share->tokens;
    for (const auto& [id, unreleased] : state.unreleased) {
      if (unreleased.client != name) continue;
      load.idle_seconds = std::max(load.idle_seconds, absl::ToDoubleSeconds(IdleOf(state, id, unreleased, now)));
    }
    snapshot->clients.push_back(std::move(load));
  }
}

EngineSnapshot::ModelLoad NoLoad(const ModelInfo& info) {
  EngineSnapshot::ModelLoad load;
  load.model = info.name;
  load.batch_fill = Histogram::Empty(ShareBounds());
  load.forward_seconds = Histogram::Empty(SecondsBounds());
  load.queue_seconds = Histogram::Empty(SecondsBounds());
  return load;
}

}  // namespace hookline
