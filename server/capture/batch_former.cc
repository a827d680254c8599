#include "server/capture/batch_former.h"

#include <algorithm>
#include <cstdlib>

namespace hookline {
namespace {

// Of a batch: small enough that a forward pass between two full ones hardly delays those.
constexpr int64_t kSmallShare = 32;

BatchItem TakeFrom(Lane& lane) {
  BatchItem item;
  item.lane = &lane;
  item.sequence = lane.source.Take();
  item.batch_sequence = item.sequence.index;
  item.next_batch_sequence = item.sequence.index + 1;
  lane.deficit -= static_cast<int64_t>(item.sequence.ids.size());
  return item;
}

std::vector<BatchItem> FixedBatch(Lane& lane) {
  std::vector<BatchItem> items;
  const int64_t count = lane.source.NextBatchSequences();
  const int64_t batch_sequence = lane.source.next_index();
  const int64_t batch_sequences = lane.source.BatchSequences();
  for (int64_t i = 0; i < count; ++i) {
    items.push_back(TakeFrom(lane));
    const bool last = i + 1 == count;
    items.back().batch_sequence = batch_sequence;
    items.back().batch_sequences = batch_sequences;
    items.back().next_batch_sequence = last ? lane.source.next_index() : batch_sequence;
    items.back().next_batch_sequences = last ? lane.source.BatchSequences() : batch_sequences;
  }
  return items;
}

}  // namespace

std::vector<BatchItem> FormBatch(const std::vector<Lane*>& lanes, const BatchLimits& limits) {
  std::vector<BatchItem> items;
  if (lanes.empty()) return items;
  const int64_t quantum = std::max<int64_t>(1, limits.max_tokens / static_cast<int64_t>(lanes.size()));
  const auto grant = [&] {
    // Credit is not saved up beyond one batch, or a lane that waited long would shut the others out.
    for (Lane* lane : lanes) lane->deficit = std::min(lane->deficit + quantum, limits.max_tokens);
  };
  const auto has_credit = [](const Lane* lane) { return lane->deficit > 0; };
  grant();
  while (std::none_of(lanes.begin(), lanes.end(), has_credit)) grant();
  Lane* first = *std::find_if(lanes.begin(), lanes.end(), has_credit);
  if (first->deterministic) return FixedBatch(*first);

  items.push_back(TakeFrom(*first));
  int64_t longest = static_cast<int64_t>(items[0].sequence.ids.size());
  while (true) {
    Lane* best = nullptr;
    int64_t best_distance = 0;
    bool without_credit = false;
    for (Lane* lane : lanes) {
      if (lane->deterministic || !lane->source.HasNext()) continue;
      const int64_t length = lane->source.NextLength();
      if (!limits.mixes_lengths && length != longest) continue;
      if ((static_cast<int64_t>(items.size()) + 1) * std::max(longest, length) > limits.max_tokens) continue;
      if (lane->deficit <= 0) {
        without_credit = true;
        continue;
      }
      const int64_t distance = std::abs(longest - length);
      if (best == nullptr || distance < best_distance) {
        best = lane;
        best_distance = distance;
      }
    }
    if (best == nullptr) {
      if (!without_credit) return items;
      grant();
      continue;
    }
    items.push_back(TakeFrom(*best));
    longest = std::max(longest, static_cast<int64_t>(items.back().sequence.ids.size()));
  }
}

std::vector<Lane*> SmallLanes(const std::vector<Lane*>& lanes, const BatchLimits& limits) {
  std::vector<Lane*> small;
  int64_t others_tokens = 0;
  for (Lane* lane : lanes) {
    if (lane->source.finished() && lane->source.ready_tokens() <= limits.max_tokens / kSmallShare) {
      small.push_back(lane);
    } else {
      others_tokens += lane->source.ready_tokens();
    }
  }
  return others_tokens >= limits.max_tokens ? small : std::vector<Lane*>();
}

}  // namespace hookline
