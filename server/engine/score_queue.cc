#include "server/engine/score_queue.h"

#include <algorithm>
#include <utility>

namespace hookline {

void ScoreQueue::Add(CaptureId id, std::shared_ptr<DeviceRun> run) {
  Member member;
  member.run = std::move(run);
  // The new member does not catch up with what others ran before it came.
  for (const auto& [other, one] : members_) {
    member.ran = other == members_.begin()->first ? one.ran : std::min(member.ran, one.ran);
  }
  members_.emplace(id, std::move(member));
}

std::shared_ptr<DeviceRun> ScoreQueue::Remove(CaptureId id) {
  const auto found = members_.find(id);
  if (found == members_.end()) return nullptr;
  std::shared_ptr<DeviceRun> run = std::move(found->second.run);
  members_.erase(found);
  return run;
}

void ScoreQueue::SetWaiting(CaptureId id, int64_t positions, int64_t paused) {
  const auto found = members_.find(id);
  if (found == members_.end()) return;
  found->second.waiting = positions;
  found->second.paused = paused;
  if (paused > 0) found->second.executor.reset();
}

int64_t ScoreQueue::waiting_members() const {
  return std::count_if(members_.begin(), members_.end(), [](const auto& member) { return member.second.waiting > 0; });
}

std::map<CaptureId, ScoreQueue::Member>::iterator ScoreQueue::Next(bool needs_room, int executor) {
  auto next = members_.end();
  for (auto it = members_.begin(); it != members_.end(); ++it) {
    const Member& member = it->second;
    if (member.waiting == 0 || (member.paused > 0) != needs_room) continue;
    if (!needs_room && member.executor.value_or(executor) != executor) continue;
    if (next == members_.end() || member.ran < next->second.ran) next = it;
  }
  return next;
}

bool ScoreQueue::IsPinned(CaptureId id) const {
  const auto found = members_.find(id);
  return found != members_.end() && found->second.executor.has_value();
}

std::vector<CaptureId> ScoreQueue::PinnedTo(int executor) const {
  std::vector<CaptureId> ids;
  for (const auto& [id, member] : members_) {
    if (member.executor == executor) ids.push_back(id);
  }
  return ids;
}

ScoreQueue::Turn ScoreQueue::Take(int64_t flows, int executor) {
  if (flows > 0 && credit_ <= 0) return {};
  auto next = Next(/*needs_room=*/false, executor);
  const auto pausing = Next(/*needs_room=*/true, executor);
  const bool has_room = pausing != members_.end() && pausing->second.paused <= free_room_;
  if (has_room && (next == members_.end() || pausing->second.ran < next->second.ran)) next = pausing;
  if (next == members_.end()) return {};
  Member& member = next->second;
  // If no flow could run, none is owed anything.
  credit_ = flows > 0 ? credit_ - static_cast<double>(member.waiting) : 0;
  member.ran += member.waiting;
  free_room_ -= member.paused;
  if (member.paused > 0) member.executor = executor;
  return {next->first, member.run, std::exchange(member.waiting, 0), std::exchange(member.paused, 0)};
}

void ScoreQueue::FlowsRun(int64_t flows, int64_t tokens) {
  const double share =
      static_cast<double>(tokens * waiting_members()) / static_cast<double>(std::max<int64_t>(1, flows));
  // While no scoring waits, no credit is saved up.
  credit_ = share == 0 ? std::min(credit_, 0.0) : std::min(credit_, 0.0) + share;
}

}  // namespace hookline
