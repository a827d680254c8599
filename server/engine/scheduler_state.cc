#include "server/engine/scheduler_state.h"

#include <iterator>
#include <optional>

namespace hookline {

SchedulerState::SchedulerState(const EngineOptions& engine_options, const Clock& engine_clock, SlabPool& slab_pool,
                               Calls scheduler_calls)
    : options(engine_options),
      clock(engine_clock),
      pool(slab_pool),
      calls(std::move(scheduler_calls)),
      ended_by_reason(static_cast<size_t>(StopReason::kError) + 1) {}

void SchedulerState::AfterUnlock(std::function<void()> action) { after_unlock.push_back(std::move(action)); }

CaptureState* SchedulerState::Find(CaptureId id) {
  const auto found = captures.find(id);
  return found == captures.end() ? nullptr : &found->second;
}

std::shared_ptr<ClientShare> SchedulerState::ShareOf(const ClientIdentity& client) {
  const absl::Time now = clock.Now();
  // Forgets clients that nothing refers to and whose buckets are full: a new share would be the same.
  for (auto it = shares.begin(); it != shares.end();) {
    it = it->second.use_count() == 1 && it->second->bucket.IsFull(now) ? shares.erase(it) : std::next(it);
  }
  std::shared_ptr<ClientShare>& share = shares[client.name];
  if (share == nullptr) share = std::make_shared<ClientShare>();
  share->identity = client;
  share->bucket.SetLimits(std::max<int64_t>(0, QuotaOf(client, options, &ClientQuotas::tokens_per_second)),
                          std::max<int64_t>(0, QuotaOf(client, options, &ClientQuotas::burst_tokens)), now);
  return share;
}

ClientUse SchedulerState::UseOf(absl::string_view client) const {
  ClientUse use;
  for (const auto& [id, held] : unreleased) {
    if (held.client != client) continue;
    const auto capture = captures.find(id);
    const bool waits = capture != captures.end() && capture->second.life.IsWaiting();
    ++(waits ? use.waiting : use.running);
    if (capture == captures.end()) continue;
    if (capture->second.recipient.window != nullptr) use.slabs += capture->second.recipient.window->held_slabs();
    if (capture->second.recipient.plan->feed.has_value()) ++use.feeds;
  }
  return use;
}

// Rows of an executor with several devices may lie on any of them, so they count on each.
int64_t SchedulerState::StagedBytes(ExecutorId id) const {
  int64_t most = 0;
  for (const std::string& device : SetupOf(id).devices) {
    const auto staged = staged_bytes.find(device);
    if (staged != staged_bytes.end()) most = std::max(most, staged->second);
  }
  return most;
}

void SchedulerState::AddStagedBytes(ExecutorId id, int64_t bytes) {
  for (const std::string& device : SetupOf(id).devices) staged_bytes[device] += bytes;
}

void SchedulerState::ForgetRoom(FlowId id) {
  if (const auto flow = flows.find(id); flow != flows.end()) flow->second.room.is_known = false;
}

void SchedulerState::ResumeFirst(CaptureId id, const CaptureState& capture) {
  const std::optional<int> executor = capture.turns.executor();
  if (!executor.has_value()) return;
  AfterUnlock([&on_room = SetupOf({capture.model, *executor}).on_room, id] { on_room(id); });
}

FlowId SchedulerState::NewFlow(const CaptureState& capture) {
  const FlowId id{++last_id};
  flows.try_emplace(id, id, capture.model, *capture.recipient.plan).first->second.share = capture.share;
  return id;
}

}  // namespace hookline
