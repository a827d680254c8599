#include "server/engine/admission_queue.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/quota_refusal.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"
#include "server/engine/capture_end.h"
#include "server/engine/quotas.h"

namespace hookline {
namespace {

struct ChosenAdmission {
  size_t index;
  size_t oldest;  // the oldest that lacks only slabs; it is overtaken unless it is the chosen one
};

absl::Status CheckSameFeed(const Flow& flow, const CapturePlan& plan) {
  const auto differs = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat("feed: \"", plan.feed->name, "\" exists with another ", what,
                                                      "; ask for the same, or name another feed"));
  };
  const auto needed = [](const FeedSource& feed) { return std::max<int64_t>(1, feed.start_when_subscribers); };
  if (!(flow.feed->dataset == plan.feed->dataset)) return differs("dataset part");
  if (flow.deterministic != plan.deterministic) return differs("deterministic");
  if (needed(*flow.feed) != needed(*plan.feed)) return differs("start_when_subscribers");
  return absl::OkStatus();
}

// Returns how many slabs to reserve for the admission: its least if others wait too, or if too few are free.
int64_t SlabsFor(const SchedulerState& state, const Admission& admission) {
  const bool others_wait = std::any_of(state.admissions.begin(), state.admissions.end(),
                                       [&](const Admission& other) { return other.flow != admission.flow; });
  return others_wait || admission.slabs > state.pool.counts().free ? admission.least_slabs : admission.slabs;
}

std::optional<ChosenAdmission> NextAdmission(SchedulerState& state) {
  if (state.admissions.empty()) return std::nullopt;
  int64_t running = static_cast<int64_t>(state.unreleased.size());
  for (const auto& [id, capture] : state.captures) running -= capture.life.IsWaiting() ? 1 : 0;
  std::vector<size_t> candidates;  // those that wait for nothing but slabs

  std::vector<int64_t> slabs;
  for (size_t i = 0; i < state.admissions.size(); ++i) {
    if (running + static_cast<int64_t>(state.admissions[i].captures.size()) > state.options.max_captures) continue;
    if (!MayRunNow(state, state.admissions[i])) continue;
    candidates.push_back(i);
    slabs.push_back(SlabsFor(state, state.admissions[i]));
  }
  if (candidates.empty()) return std::nullopt;
  Admission& oldest = state.admissions[candidates.front()];
  int64_t held = 0;
  std::vector<std::shared_ptr<SlabWindow>> still_there;
  for (std::shared_ptr<SlabWindow>& window : oldest.overtaken_by) {
    held += window->held_slabs();
    // A window that holds nothing is closed, so destroying it calls nothing.
    if (window->held_slabs() > 0) still_there.push_back(std::move(window));
  }
  oldest.overtaken_by = std::move(still_there);
  const std::optional<size_t> chosen = ChooseAdmission(slabs, state.pool.counts().free, state.options.slab_count, held);
  if (!chosen.has_value()) return std::nullopt;
  return ChosenAdmission{candidates[*chosen], candidates.front()};
}

// Shrinks the windows of running captures to two row groups while an admission waits for slabs.
void ShrinkWindows(SchedulerState& state) {
  bool slabs_are_short = false;
  for (const Admission& admission : state.admissions) {
    slabs_are_short |= admission.least_slabs > state.pool.counts().free && MayRunNow(state, admission);
  }
  if (!slabs_are_short) return;
  for (auto& [id, capture] : state.captures) {
    const int64_t least = 2 * capture.recipient.plan->group_slabs;
    if (capture.recipient.window == nullptr || capture.window_slabs <= least) continue;
    capture.window_slabs = least;
    state.ForgetRoom(capture.flow);
    state.AfterUnlock([window = capture.recipient.window, least] { window->ShrinkTo(least); });
  }
}

void Begin(SchedulerState& state, CaptureId id, CaptureState& capture, int64_t window_slabs) {
  Flow& flow = state.flows.at(capture.flow);
  const absl::Time now = state.clock.Now();
  capture.life.Begin();
  capture.account.queue_time += now - capture.waiting_since;
  capture.waiting_since = capture.last_sent = now;
  capture.model_tokens_before = state.QueueOf(capture.model).load.tokens;
  capture.window_slabs = window_slabs;
  capture.recipient.window =
      state.pool.TryReserve(window_slabs, /*on_return=*/[&state, id] { state.calls.slab_returned(id); });
  if (flow.feed.has_value()) {
    // Rows begin with the sequence that the feed takes next.
    capture.cursor.skip_until.sequence = capture.cursor.skip_until.batch_sequence = flow.source.next_count();
  }
  state.AfterUnlock([id, events = capture.recipient.events, plan = capture.recipient.plan,
                     begin = capture.cursor.skip_until, bytes = window_slabs * state.options.slab_bytes] {
    CaptureStarted started = StartedEvent(id, *plan, begin);
    started.window_bytes = bytes;
    events->PushStarted(std::move(started));
  });
  flow.receivers.push_back(id);
  flow.room.is_known = false;
}

}  // namespace

absl::Status CheckCaptureCount(SchedulerState& state, const ClientShare& share, const CapturePlan& plan, int64_t rows) {
  if (state.draining) return absl::UnavailableError("the server is shutting down");
  const ClientUse use = state.UseOf(share.identity.name);
  RETURN_IF_ERROR(CheckQuotas(share, use, plan, rows, state.options, state.clock.Now()));
  if (use.running + use.waiting >= state.options.max_captures_per_address) {
    return absl::ResourceExhaustedError(absl::StrCat("your address has ", use.running + use.waiting,
                                                     " captures, of at most ", state.options.max_captures_per_address,
                                                     " (--max-captures-per-address); end one of them first"));
  }
  int64_t waiting = 0;
  for (const auto& [id, capture] : state.captures) waiting += capture.life.IsWaiting() ? 1 : 0;
  if (waiting >= state.options.max_captures) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat("this server has ", waiting, " captures that wait, of at most ",
                                                  state.options.max_captures, " (--max-captures); try again later")),
        kQueueRetry);
  }
  return absl::OkStatus();
}

absl::Status CheckScoreCount(SchedulerState& state, const ClientShare& share) {
  if (state.draining) return absl::UnavailableError("the server is shutting down");
  const absl::Time now = state.clock.Now();
  if (const absl::Duration delay = share.bucket.Delay(now); delay > absl::ZeroDuration()) {
    return WithRetryAfter(
        QuotaRefusal("tokens_per_second",
                     absl::StrCat("client ", share.identity.name, " has used up its ", share.bucket.tokens_per_second(),
                                  " tokens per second (tokens_per_second of its quotas, or "
                                  "--client-tokens-per-second)")),
        delay);
  }
  const auto own = std::count_if(state.scores.begin(), state.scores.end(), [&](const auto& score) {
    return score.second.share->identity.name == share.identity.name;
  });
  const int64_t most = MaxRunningCaptures(share.identity, state.options);
  if (own < most) return absl::OkStatus();
  return WithRetryAfter(
      QuotaRefusal("captures",
                   absl::StrCat("client ", share.identity.name, " has ", own, " scorings, of at most ", most,
                                " (captures of its quotas, or --client-captures); end one of them first")),
      kQueueRetry);
}

absl::Status CheckHeldTokens(const SchedulerState& state, int64_t more) {
  if (more == 0) return absl::OkStatus();
  int64_t held = 0;
  for (const auto& [id, flow] : state.flows) held += flow.source.held_tokens();
  for (const auto& [id, score] : state.scores) held += score.held_tokens;
  if (held + more <= state.options.max_held_tokens) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("tokens: this server holds ", held, " tokens for its clients; with these ", more,
                   " it would exceed its limit of ", state.options.max_held_tokens,
                   " (--max-held-tokens); try again later, or send them in smaller messages, by CaptureStream"));
}

absl::Status JoinFeed(SchedulerState& state, CaptureId id, CaptureState& capture) {
  const CapturePlan& plan = *capture.recipient.plan;
  const std::pair<ModelId, std::string> key(capture.model, plan.feed->name);
  int64_t slabs = plan.window_slabs;
  int64_t least_slabs = 2 * plan.group_slabs;
  if (const auto feed = state.feeds.find(key); feed != state.feeds.end()) {
    const Flow& flow = state.flows.at(feed->second);
    RETURN_IF_ERROR(CheckSameFeed(flow, plan));
    for (CaptureId member : flow.waiting_members) {
      slabs += state.Find(member)->recipient.plan->window_slabs;
      least_slabs += 2 * state.Find(member)->recipient.plan->group_slabs;
    }
  }
  if (slabs > state.options.slab_count) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "feed: the first members of \"", plan.feed->name, "\" together need ", slabs, " slabs, but the server has ",
        state.options.slab_count, " (--slab-count); ask for fewer hook points or members"));
  }
  const auto [feed, is_first] = state.feeds.try_emplace(key, kNoFlow);
  if (is_first) feed->second = state.NewFlow(capture);
  capture.flow = feed->second;
  Flow& flow = state.flows.at(capture.flow);
  if (flow.started) {
    state.admissions.push_back({flow.id, {id}, plan.window_slabs, 2 * plan.group_slabs, {}});
    return absl::OkStatus();
  }
  flow.waiting_members.push_back(id);
  if (static_cast<int64_t>(flow.waiting_members.size()) >= flow.feed->start_when_subscribers) {
    flow.started = true;
    state.admissions.push_back({flow.id, std::exchange(flow.waiting_members, {}), slabs, least_slabs, {}});
  }
  return absl::OkStatus();
}

void AdmitNow(SchedulerState& state) {
  while (const std::optional<ChosenAdmission> chosen = NextAdmission(state)) {
    Admission next = std::move(state.admissions[chosen->index]);
    state.admissions.erase(state.admissions.begin() + static_cast<std::ptrdiff_t>(chosen->index));
    const bool is_short = SlabsFor(state, next) < next.slabs;
    for (CaptureId id : next.captures) {
      CaptureState& capture = *state.Find(id);
      const CapturePlan& plan = *capture.recipient.plan;
      Begin(state, id, capture, is_short ? 2 * plan.group_slabs : plan.window_slabs);
      if (chosen->index != chosen->oldest) {
        state.admissions[chosen->oldest].overtaken_by.push_back(capture.recipient.window);
      }
    }
    ModelQueue& queue = state.QueueOf(state.flows.at(next.flow).model);
    Flow* const flow = &state.flows.at(next.flow);
    if (std::find(queue.turn.begin(), queue.turn.end(), flow) == queue.turn.end()) queue.turn.push_back(flow);
    queue.last_arrival = state.clock.Now();
    queue.WakeOne();
    for (CaptureId id : next.captures) {
      // A resumed capture may have no rows left.
      const CaptureState& capture = *state.Find(id);
      if (capture.cursor.next_row >= capture.recipient.plan->max_budget) {
        StopCapture(state, id, StopReason::kBudget, absl::OkStatus());
      }
    }
    EndFlowIfDone(state, next.flow);
    state.KeepUntilUnlocked(std::move(next));
  }
  ShrinkWindows(state);
}

bool MayRunNow(const SchedulerState& state, const Admission& admission) {
  std::map<std::string, std::pair<int64_t, int64_t>> wanted;  // captures and slabs of each client
  for (CaptureId id : admission.captures) {
    const CaptureState& capture = state.captures.at(id);
    auto& [captures, slabs] = wanted[capture.client.name];
    ++captures;
    slabs += 2 * capture.recipient.plan->group_slabs;
  }
  for (const auto& [client, needed] : wanted) {
    if (!MayRun(state.shares.at(client)->identity, state.UseOf(client), needed.first, needed.second, state.options))
      return false;
  }
  return true;
}

std::optional<int> CapturesAhead(const SchedulerState& state, CaptureId id) {
  int ahead = 0;
  for (const Admission& admission : state.admissions) {
    if (std::find(admission.captures.begin(), admission.captures.end(), id) != admission.captures.end()) return ahead;
    ahead += static_cast<int>(admission.captures.size());
  }
  return std::nullopt;
}

}  // namespace hookline
