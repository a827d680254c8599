#include "server/engine/pass_plan.h"

#include <algorithm>
#include <utility>

namespace hookline {

PassPlan::PassPlan(absl::Span<Delivery* const> deliveries, absl::Span<const BatchItem> batch_items, size_t begin,
                   size_t end, const HookPoints& hook_points)
    : items(batch_items.subspan(begin, end - begin)), batch_rows(items.size(), -1) {
  std::vector<bool> runs(items.size());
  for (Delivery* delivery : deliveries) {
    Part part;
    part.delivery = delivery;
    part.first = delivery->RowsBefore(begin);
    const int64_t part_end = delivery->RowsBefore(end);
    if (part.first == part_end) continue;
    part.share.capture = delivery->recipient().capture;
    std::vector<bool> wanted(items.size());
    FlowId flow = kNoFlow;
    for (int64_t i = part.first; i < part_end; ++i) {
      const size_t item = delivery->origins()[i].item - begin;
      wanted[item] = true;
      flow = items[item].flow;
    }
    for (size_t i = 0; i < items.size(); ++i) {
      if (!wanted[i] && !(items[i].deterministic && items[i].flow == flow)) continue;
      runs[i] = true;
      ++part.share.sequences;
      part.share.tokens += items[i].sequence.length;
    }
    part.rows.resize(static_cast<size_t>(part_end - part.first));
    parts.push_back(std::move(part));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (!runs[i]) continue;
    batch_rows[i] = sequences++;
    positions = std::max(positions, items[i].sequence.length);
    tokens += items[i].sequence.length;
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    Part& part = parts[p];
    const int64_t rows = static_cast<int64_t>(part.rows.size());
    for (int64_t i = 0; i < rows; ++i) {
      const Delivery::Origin& origin = part.delivery->origins()[part.first + i];
      part.rows[i] = batch_rows[origin.item - begin] * positions + origin.position;
    }
    const std::vector<CapturePlan::HookPoint>& planned = part.delivery->recipient().plan->hook_points;
    for (size_t h = 0; h < planned.size(); ++h) {
      const int64_t taken = std::min(rows, part.delivery->RowsOf(static_cast<int>(h)) - part.first);
      if (taken <= 0) continue;
      taps[planned[h].index].push_back({p, static_cast<int>(h), taken});
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
