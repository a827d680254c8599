#include "server/engine/stalls.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/engine/admission_queue.h"
#include "server/engine/capture_end.h"
#include "server/engine/device_run.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// The log says who waits, and for whom, once an admission has waited this long, and then at this interval.
constexpr absl::Duration kWaitLogDelay = absl::Seconds(1);
constexpr absl::Duration kWaitLogInterval = absl::Minutes(1);

// Looking at more captures than this takes longer than forming a batch, so with more of them it is done only at
// this interval.
constexpr size_t kFewCaptures = 64;
constexpr absl::Duration kLookInterval = absl::Milliseconds(10);

// Returns whether an admission waits for what the client's captures hold: an admission that the limits of its own
// clients would let run, or one that includes another capture of this client.
bool IsWaitedFor(const SchedulerState& state, absl::string_view client) {
  for (const Admission& admission : state.admissions) {
    if (MayRunNow(state, admission)) return true;
    for (CaptureId id : admission.captures) {
      if (state.captures.at(id).client.name == client) return true;
    }
  }
  return false;
}

void EndStalledCapture(SchedulerState& state, CaptureId id, absl::Time now) {
  ++state.stalled;
  const std::shared_ptr<EventQueue> events = state.unreleased.at(id).events;
  absl::Status status = absl::UnavailableError(absl::StrCat(
      "the client has neither read nor sent anything for ", absl::FormatDuration(state.options.stall_timeout),
      " (--stall-timeout) while others wait for what this capture holds; continue with the resume token"));
  if (CaptureState* capture = state.Find(id); capture != nullptr && capture->life.phase() != CapturePhase::kEnded) {
    capture->drop_queued = true;
    if (capture->life.phase() == CapturePhase::kStopping) capture->life.Fail(status);
    StopCapture(state, id, StopReason::kError, status);
  }
  // The capture no longer counts, and its queued chunks are dropped; the status is kept for a client that reads again.
  state.AfterUnlock([events, status] { events->Abandon(status); });
  state.unreleased.erase(id);
  state.expiring[id] = {events, now + state.options.stall_timeout};
}

void LogWaiting(SchedulerState& state, absl::Time now) {
  if (state.admissions.empty()) {
    state.waiting_since = absl::InfiniteFuture();
    return;
  }
  state.waiting_since = std::min(state.waiting_since, now);
  if (now - state.waiting_since < kWaitLogDelay || now - state.last_wait_log < kWaitLogInterval) return;
  state.last_wait_log = now;
  std::string holders;
  for (const auto& [name, share] : state.shares) {
    const ClientUse use = state.UseOf(name);
    if (use.running == 0) continue;
    absl::Duration idle;
    for (const auto& [id, unreleased] : state.unreleased) {
      if (unreleased.client == name) idle = std::max(idle, IdleOf(state, id, unreleased, now));
    }
    absl::StrAppend(&holders, holders.empty() ? "" : "; ", name, " has ", use.running, " captures and ", use.slabs,
                    " slabs");
    if (idle >= absl::Seconds(1)) {
      absl::StrAppend(&holders, ", and has kept a capture waiting for ",
                      absl::FormatDuration(absl::Trunc(idle, absl::Seconds(1))));
    }
  }
  const std::string line = absl::StrCat(
      state.admissions.size(), " captures wait to run, the oldest of client ",
      state.captures.at(state.admissions.front().captures.front()).client.name, "; the queue has been in use for ",
      absl::FormatDuration(absl::Trunc(now - state.waiting_since, absl::Seconds(1))), ": ", holders);
  state.AfterUnlock([line] { spdlog::warn("{}", line); });
}

}  // namespace

absl::Duration IdleOf(const SchedulerState& state, CaptureId id, const UnreleasedCapture& unreleased, absl::Time now) {
  if (unreleased.events->WaitsForSink()) {
    // Events that the sink has consumed since the last look count as consumed now.
    return unreleased.events->consumed_events() == unreleased.consumed_events ? now - unreleased.last_read
                                                                              : absl::ZeroDuration();
  }
  const auto found = state.captures.find(id);
  if (found == state.captures.end()) return absl::ZeroDuration();
  const CaptureState& capture = found->second;
  const bool waits_for_tokens = capture.life.phase() == CapturePhase::kRunning && capture.recipient.plan->streams &&
                                capture.life.in_flight() == 0 && capture.flow != kNoFlow &&
                                !state.flows.at(capture.flow).source.HasNext();
  return waits_for_tokens ? now - std::max(capture.last_sent, unreleased.last_read) : absl::ZeroDuration();
}

void EndStalled(SchedulerState& state, absl::Time now, absl::Time* look_again) {
  if (state.unreleased.size() > kFewCaptures && now < state.next_stall_look) {
    if (!state.admissions.empty() || !state.expiring.empty())
      *look_again = std::min(*look_again, state.next_stall_look);
    return;
  }
  state.next_stall_look = now + kLookInterval;
  for (auto it = state.expiring.begin(); it != state.expiring.end();) {
    const auto expiring = it++;
    if (now < expiring->second.deadline) {
      *look_again = std::min(*look_again, expiring->second.deadline);
      continue;
    }
    state.AfterUnlock([events = expiring->second.events] { events->NotifyExpired(); });
    state.expiring.erase(expiring);
  }
  std::vector<CaptureId> stalled;
  for (auto& [id, unreleased] : state.unreleased) {
    if (const int64_t consumed = unreleased.events->consumed_events(); consumed != unreleased.consumed_events) {
      unreleased.consumed_events = consumed;
      unreleased.last_read = now;
    }
    const auto capture = state.captures.find(id);
    if (capture != state.captures.end() && capture->second.life.IsWaiting()) continue;
    if (state.admissions.empty() || !IsWaitedFor(state, unreleased.client)) continue;
    const absl::Duration idle = IdleOf(state, id, unreleased, now);
    if (idle >= state.options.stall_timeout) {
      stalled.push_back(id);
    } else {
      *look_again = std::min(*look_again, now + (state.options.stall_timeout - idle));
    }
  }
  LogWaiting(state, now);
  if (!state.admissions.empty()) {
    *look_again =
        std::min(*look_again, std::max(state.waiting_since + kWaitLogDelay, state.last_wait_log + kWaitLogInterval));
  }
  for (CaptureId id : stalled) EndStalledCapture(state, id, now);
  if (!stalled.empty()) AdmitNow(state);
}

void EndSilentScores(SchedulerState& state, absl::Time now, absl::Time* look_again) {
  for (auto& [id, score] : state.scores) {
    if (now < score.answer_by) {
      *look_again = std::min(*look_again, score.answer_by);
      continue;
    }
    // The client may have answered since.
    score.answer_by = absl::InfiniteFuture();
    state.AfterUnlock([calls = &state.calls, score_id = id, run = score.run, now] {
      run->EndIfSilent(now);
      calls->score_may_run(score_id);
    });
  }
}

}  // namespace hookline
