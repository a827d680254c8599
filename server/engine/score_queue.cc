#include "server/engine/score_queue.h"

#include <algorithm>
#include <utility>

namespace hookline {

void ScoreQueue::Add(CaptureId id, std::shared_ptr<DeviceRun> run) {
  Member member;
  member.run = std::move(run);
  // It does not catch up with what others ran before it came.
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

void ScoreQueue::SetWaiting(CaptureId id, int64_t positions) {
  const auto found = members_.find(id);
  if (found != members_.end()) found->second.waiting = positions;
}

int64_t ScoreQueue::waiting_members() const {
  return std::count_if(members_.begin(), members_.end(), [](const auto& member) { return member.second.waiting > 0; });
}

bool ScoreQueue::has_waiting() const { return waiting_members() > 0; }

ScoreQueue::Turn ScoreQueue::Take(int64_t flows) {
  if (flows > 0 && credit_ <= 0) return {};
  Member* next = nullptr;
  CaptureId next_id{};
  for (auto& [id, member] : members_) {
    if (member.waiting == 0 || (next != nullptr && member.ran >= next->ran)) continue;
    next = &member;
    next_id = id;
  }
  if (next == nullptr) return {};
  // If no flow could run, nobody is owed anything.
  credit_ = flows > 0 ? credit_ - static_cast<double>(next->waiting) : 0;
  next->ran += next->waiting;
  return {next_id, next->run, std::exchange(next->waiting, 0)};
}

void ScoreQueue::FlowsRun(int64_t flows, int64_t tokens) {
  const double share =
      static_cast<double>(tokens * waiting_members()) / static_cast<double>(std::max<int64_t>(1, flows));
  // If no scorings wait, none saves up credit.
  credit_ = share == 0 ? std::min(credit_, 0.0) : std::min(credit_, 0.0) + share;
}

}  // namespace hookline
