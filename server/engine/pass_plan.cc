#include "server/engine/pass_plan.h"

#include <algorithm>
#include <utility>

namespace hookline {

PassPlan::PassPlan(absl::Span<Delivery* const> deliveries, absl::Span<const BatchItem> batch_items, size_t begin,
                   size_t end, const HookPoints& hook_points)
    : items(batch_items.subspan(begin, end - begin)), batch_rows(items.size(), -1) {
  std::vector<bool> runs(items.size());
  for (Delivery* delivery : deliveries) {
    Member member;
    member.delivery = delivery;
    member.first = delivery->RowsBefore(begin);
    const int64_t member_end = delivery->RowsBefore(end);
    if (member.first == member_end) continue;
    member.share.capture = delivery->recipient().capture;
    std::vector<bool> wanted(items.size());
    FlowId flow = kNoFlow;
    for (int64_t i = member.first; i < member_end; ++i) {
      const size_t item = delivery->origins()[i].item - begin;
      wanted[item] = true;
      flow = items[item].flow;
    }
    for (size_t i = 0; i < items.size(); ++i) {
      if (!wanted[i] && !(items[i].deterministic && items[i].flow == flow)) continue;
      runs[i] = true;
      ++member.share.sequences;
      member.share.tokens += items[i].sequence.length;
    }
    member.rows.resize(static_cast<size_t>(member_end - member.first));
    members.push_back(std::move(member));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (!runs[i]) continue;
    batch_rows[i] = sequences++;
    positions = std::max(positions, items[i].sequence.length);
    tokens += items[i].sequence.length;
  }
  for (size_t m = 0; m < members.size(); ++m) {
    Member& member = members[m];
    const int64_t rows = static_cast<int64_t>(member.rows.size());
    for (int64_t i = 0; i < rows; ++i) {
      const Delivery::Origin& origin = member.delivery->origins()[member.first + i];
      member.rows[i] = batch_rows[origin.item - begin] * positions + origin.position;
    }
    const std::vector<CapturePlan::HookPoint>& planned = member.delivery->recipient().plan->hook_points;
    for (size_t h = 0; h < planned.size(); ++h) {
      const int64_t taken = std::min(rows, member.delivery->RowsOf(static_cast<int>(h)) - member.first);
      if (taken <= 0) continue;
      taps[planned[h].index].push_back({m, static_cast<int>(h), taken});
      layers = std::max(layers, hook_points[planned[h].index].layer + 1);
    }
  }
}

void PassPlan::FillTokenIds(int64_t* ids) const {
  std::fill(ids, ids + sequences * positions, 0);
  for (size_t i = 0; i < items.size(); ++i) {
    if (batch_rows[i] < 0) continue;
    const auto& from = items[i].sequence.ids;
    std::copy(from.begin(), from.end(), ids + batch_rows[i] * positions);
  }
}

std::vector<int64_t> PassPlan::Lengths() const {
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < items.size(); ++i) {
    if (batch_rows[i] >= 0) lengths.push_back(items[i].sequence.length);
  }
  return lengths;
}

}  // namespace hookline
