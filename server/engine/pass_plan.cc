#include "server/engine/pass_plan.h"

#include <algorithm>
#include <utility>

namespace hookline {

PassPlan::PassPlan(std::vector<std::unique_ptr<Delivery>> deliveries, absl::Span<const BatchItem> items,
                   const HookPoints& hook_points)
    : batch_rows(items.size(), -1) {
  std::vector<bool> runs(items.size());
  for (std::unique_ptr<Delivery>& delivery : deliveries) {
    Part& part = parts.emplace_back();
    part.share.capture = delivery->recipient().capture;
    std::vector<bool> wanted(items.size());
    FlowId flow = kNoFlow;
    for (const Delivery::Origin& origin : delivery->origins()) {
      wanted[origin.item] = true;
      flow = items[origin.item].flow;
    }
    for (size_t i = 0; i < items.size(); ++i) {
      if (!wanted[i] && !(items[i].deterministic && items[i].flow == flow)) continue;
      runs[i] = true;
      ++part.share.sequences;
      part.share.tokens += items[i].sequence.length;
    }
    part.delivery = std::move(delivery);
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (!runs[i]) continue;
    batch_rows[i] = sequences++;
    positions = std::max(positions, items[i].sequence.length);
    tokens += items[i].sequence.length;
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    Part& part = parts[p];
    part.rows.reserve(part.delivery->origins().size());
    for (const Delivery::Origin& origin : part.delivery->origins()) {
      part.rows.push_back(batch_rows[origin.item] * positions + origin.position);
    }
    const std::vector<CapturePlan::HookPoint>& planned = part.delivery->recipient().plan->hook_points;
    for (size_t h = 0; h < planned.size(); ++h) {
      const int64_t rows = part.delivery->RowsOf(static_cast<int>(h));
      if (rows == 0) continue;
      taps[planned[h].index].push_back({p, static_cast<int>(h), rows});
      layers = std::max(layers, hook_points[planned[h].index].layer + 1);
    }
  }
}

void PassPlan::FillTokenIds(absl::Span<const BatchItem> items, int64_t* ids) const {
  std::fill(ids, ids + sequences * positions, 0);
  for (size_t i = 0; i < items.size(); ++i) {
    if (batch_rows[i] < 0) continue;
    const auto& from = items[i].sequence.ids;
    std::copy(from.begin(), from.end(), ids + batch_rows[i] * positions);
  }
}

std::vector<int64_t> PassPlan::Lengths(absl::Span<const BatchItem> items) const {
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < items.size(); ++i) {
    if (batch_rows[i] >= 0) lengths.push_back(items[i].sequence.length);
  }
  return lengths;
}

}  // namespace hookline
