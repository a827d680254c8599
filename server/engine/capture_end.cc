#include "server/engine/capture_end.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "server/engine/device_run.h"

namespace hookline {
namespace {

void LeaveAdmissions(SchedulerState& state, CaptureId id) {
  for (auto admission = state.admissions.begin(); admission != state.admissions.end(); ++admission) {
    const size_t before = admission->captures.size();
    EraseValue(&admission->captures, id);
    if (admission->captures.size() == before) continue;
    if (!admission->captures.empty()) {
      admission->slabs -= state.Find(id)->recipient.plan->window_slabs;
      admission->least_slabs -= 2 * state.Find(id)->recipient.plan->group_slabs;
      return;
    }
    state.KeepUntilUnlocked(std::move(*admission));
    state.admissions.erase(admission);
    return;
  }
}

void LeaveFlow(SchedulerState& state, CaptureId id, CaptureState& capture) {
  const FlowId flow_id = std::exchange(capture.flow, kNoFlow);
  if (flow_id == kNoFlow) return;
  Flow& flow = state.flows.at(flow_id);
  ModelQueue& queue = state.QueueOf(capture.model);
  EraseValue(&flow.receivers, id);
  flow.room.is_known = false;
  EraseValue(&flow.waiting_members, id);
  const bool is_awaited = std::any_of(state.admissions.begin(), state.admissions.end(),
                                      [&](const Admission& admission) { return admission.flow == flow_id; });
  if (flow.receivers.empty() && flow.waiting_members.empty() && !is_awaited) {
    const auto feed =
        std::find_if(state.feeds.begin(), state.feeds.end(), [&](const auto& f) { return f.second == flow_id; });
    if (feed != state.feeds.end()) state.feeds.erase(feed);
    EraseValue(&queue.turn, &flow);
    state.flows.erase(flow_id);
  }
  queue.WakeOne();
}

// Queues the final event once no batch of the stopping capture is in flight, and forgets a capture that is over.
void EndIfDone(SchedulerState& state, CaptureId id) {
  const auto found = state.captures.find(id);
  if (found == state.captures.end()) return;
  CaptureState& capture = found->second;
  if (capture.life.EndIfLanded()) {
    const StopReason reason = capture.life.stop_reason();
    ++state.ended_by_reason[static_cast<size_t>(reason)];
    const bool drop = reason == StopReason::kShuttingDown || capture.drop_queued;
    state.AfterUnlock([events = capture.recipient.events,
                       ended = capture.account.Ended(reason, capture.life.stop_status()),
                       drop] { events->End(ended, drop ? EventQueue::Queued::kDrop : EventQueue::Queued::kKeep); });
  }
  if (!capture.life.IsOver()) return;
  state.AfterUnlock([&state, window = capture.recipient.window] {
    if (window != nullptr) {
      window->Close();
    } else {
      state.calls.admit_waiting();  // captures that waited behind it may be admitted now
    }
  });
  state.KeepUntilUnlocked(state.captures.extract(found));
}

}  // namespace

CaptureStarted StartedEvent(CaptureId id, const CapturePlan& plan, const ResumePosition& begin) {
  CaptureStarted started = plan.Started(begin);
  started.capture_id = static_cast<int64_t>(id);
  return started;
}

void StopCapture(SchedulerState& state, CaptureId id, StopReason reason, absl::Status status) {
  CaptureState* const capture = state.Find(id);
  if (capture == nullptr) return;
  const bool was_waiting = capture->life.IsWaiting();
  if (!capture->life.Stop(reason, std::move(status))) return;
  if (was_waiting) {
    state.AfterUnlock([id, reason, events = capture->recipient.events, plan = capture->recipient.plan] {
      if (reason == StopReason::kCancelled) return events->SkipStarted();
      events->PushStarted(StartedEvent(id, *plan, plan->position));
    });
  }
  LeaveAdmissions(state, id);
  LeaveFlow(state, id, *capture);
  if (capture->unplaced_deliveries > 0) state.ResumeFirst(id, *capture);
  EndIfDone(state, id);
}

void EndFlowIfDone(SchedulerState& state, FlowId id) {
  const auto found = state.flows.find(id);
  if (found == state.flows.end() || !found->second.source.Ended()) return;
  const auto feed = std::find_if(state.feeds.begin(), state.feeds.end(), [&](const auto& f) { return f.second == id; });
  if (feed != state.feeds.end()) state.feeds.erase(feed);
  const std::vector<CaptureId> receivers = found->second.receivers;  // a copy, because StopCapture changes the original
  for (CaptureId receiver : receivers) StopCapture(state, receiver, StopReason::kSourceEnded, absl::OkStatus());
}

void StopAll(SchedulerState& state, const absl::Status& status) {
  state.draining = true;
  for (const auto& [id, score] : state.scores) {
    state.AfterUnlock([run = score.run, status] { run->End(status); });
  }
  std::vector<CaptureId> running;
  for (const auto& [id, capture] : state.captures) running.push_back(id);
  for (CaptureId id : running) StopCapture(state, id, StopReason::kShuttingDown, status);
}

void Landed(SchedulerState& state, CaptureId id) {
  state.captures.at(id).life.Land();
  EndIfDone(state, id);
}

}  // namespace hookline
