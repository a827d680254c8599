#include "server/engine/batch_former.h"

#include <algorithm>
#include <cstdlib>

namespace hookline {
namespace {

// A flow with less than 1/32 of a batch counts as small: its pass hardly delays the full batches around it.
constexpr int64_t kSmallShare = 32;

BatchItem TakeFrom(Flow& flow) {
  BatchItem item;
  item.flow = flow.id;
  item.deterministic = flow.deterministic;
  item.sequence = flow.source.Take();
  item.batch_sequence = item.sequence.count;
  item.next_batch_sequence = item.sequence.count + 1;
  flow.deficit -= item.sequence.length;
  return item;
}

std::vector<BatchItem> FixedBatch(Flow& flow) {
  std::vector<BatchItem> items;
  const int64_t count = flow.source.NextBatchSequences();
  const int64_t batch_sequence = flow.source.next_count();
  const int64_t batch_sequences = flow.source.BatchSequences();
  for (int64_t i = 0; i < count; ++i) {
    items.push_back(TakeFrom(flow));
    const bool last = i + 1 == count;
    items.back().batch_sequence = batch_sequence;
    items.back().batch_sequences = batch_sequences;
    items.back().next_batch_sequence = last ? flow.source.next_count() : batch_sequence;
    items.back().next_batch_sequences = last ? flow.source.BatchSequences() : batch_sequences;
  }
  return items;
}

}  // namespace

std::vector<BatchItem> FormBatch(const std::vector<Flow*>& flows, const BatchLimits& limits) {
  std::vector<BatchItem> items;
  if (flows.empty()) return items;
  const int64_t quantum = std::max<int64_t>(1, limits.max_tokens / static_cast<int64_t>(flows.size()));
  const auto grant = [&] {
    // Credit does not grow beyond one batch; otherwise a flow that waited long would shut the others out.
    for (Flow* flow : flows) flow->deficit = std::min(flow->deficit + quantum, limits.max_tokens);
  };
  const auto has_credit = [](const Flow* flow) { return flow->deficit > 0; };
  grant();
  while (std::none_of(flows.begin(), flows.end(), has_credit)) grant();
  Flow* first = *std::find_if(flows.begin(), flows.end(), has_credit);
  if (first->deterministic) return FixedBatch(*first);

  items.push_back(TakeFrom(*first));
  int64_t longest = items[0].sequence.length;
  while (true) {
    Flow* best = nullptr;
    int64_t best_distance = 0;
    bool without_credit = false;
    for (Flow* flow : flows) {
      if (flow->deterministic || !flow->source.HasNext()) continue;
      const int64_t length = flow->source.NextLength();
      if (!limits.mixes_lengths && length != longest) continue;
      if ((static_cast<int64_t>(items.size()) + 1) * std::max(longest, length) > limits.max_tokens) continue;
      if (flow->deficit <= 0) {
        without_credit = true;
        continue;
      }
      const int64_t distance = std::abs(longest - length);
      if (best == nullptr || distance < best_distance) {
        best = flow;
        best_distance = distance;
      }
    }
    if (best == nullptr) {
      if (!without_credit) return items;
      grant();
      continue;
    }
    items.push_back(TakeFrom(*best));
    longest = std::max(longest, items.back().sequence.length);
  }
}

std::vector<Flow*> SmallFlows(const std::vector<Flow*>& flows, const BatchLimits& limits) {
  std::vector<Flow*> small;
  int64_t others_tokens = 0;
  for (Flow* flow : flows) {
    if (flow->source.finished() && flow->source.ready_tokens() <= limits.max_tokens / kSmallShare) {
      small.push_back(flow);
    } else {
      others_tokens += flow->source.ready_tokens();
    }
  }
  return others_tokens >= limits.max_tokens ? small : std::vector<Flow*>();
}

}  // namespace hookline
