#include "server/engine/batch_former.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace hookline {
namespace {

// A flow with at most 1/32 of a batch counts as small: its pass hardly delays the full batches around it.
constexpr int64_t kSmallShare = 32;

BatchItem TakeFrom(Flow& flow) {
  BatchItem item;
  item.flow = flow.id;
  item.deterministic = flow.deterministic;
  item.sequence = flow.source.Take();
  item.batch_sequence = item.sequence.count;
  item.next_batch_sequence = item.sequence.count + 1;
  flow.deficit -= item.sequence.length;
  flow.share->deficit -= item.sequence.length;
  flow.share->tokens += item.sequence.length;
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

// Credit does not grow beyond one batch; otherwise a client or flow that waited long would shut the others out.
void Earn(int64_t* deficit, int64_t tokens, const BatchLimits& limits) {
  *deficit = std::min(*deficit + std::max<int64_t>(1, tokens), limits.max_tokens);
}

// The credit of clients and of their flows.
class Credits {
 public:
  Credits(const std::vector<Flow*>& flows, const std::vector<Flow*>& ready, const BatchLimits& limits)
      : limits_(limits) {
    for (const Flow* flow : ready) {
      ClientShare* const share = flow->share.get();
      if (std::exchange(share->is_earning, true)) continue;
      share->batch_flows = 0;
      earning_.push_back(share);
      earning_weight_ += share->identity.weight;
    }
    for (const Flow* flow : flows) ++flow->share->batch_flows;
    for (ClientShare* share : earning_) {
      share->is_earning = false;
      EarnShare(share);
    }
    for (Flow* flow : flows) EarnFlow(flow);
  }

  static bool Has(const Flow* flow) { return flow->deficit > 0 && flow->share->deficit > 0; }

  // Brings `flows`, which would fit into the batch but lack credit, nearer to credit. Flows whose clients have credit
  // earn their part of it; if no client has credit, the clients earn another share.
  void Grant(const std::vector<Flow*>& flows) {
    bool none_has_share = true;
    for (Flow* flow : flows) {
      if (flow->share->deficit <= 0) continue;
      none_has_share = false;
      EarnFlow(flow);
    }
    if (!none_has_share) return;
    for (const Flow* flow : flows) {
      if (!std::exchange(flow->share->is_granted, true)) EarnShare(flow->share.get());
    }
    for (const Flow* flow : flows) flow->share->is_granted = false;
  }

 private:
  int64_t QuantumOf(const ClientShare& share) const {
    return limits_.max_tokens * share.identity.weight / std::max<int64_t>(1, earning_weight_);
  }
  void EarnShare(ClientShare* share) { Earn(&share->deficit, QuantumOf(*share), limits_); }
  void EarnFlow(Flow* flow) { Earn(&flow->deficit, QuantumOf(*flow->share) / flow->share->batch_flows, limits_); }

  const BatchLimits& limits_;
  std::vector<ClientShare*> earning_;
  int64_t earning_weight_ = 0;
};

}  // namespace

std::vector<BatchItem> FormBatch(const std::vector<Flow*>& flows, const std::vector<Flow*>& ready,
                                 const BatchLimits& limits) {
  std::vector<BatchItem> items;
  if (flows.empty()) return items;
  Credits credits(flows, ready, limits);
  while (std::none_of(flows.begin(), flows.end(), Credits::Has)) credits.Grant(flows);
  Flow* first = *std::find_if(flows.begin(), flows.end(), Credits::Has);
  if (first->deterministic) return FixedBatch(*first);

  for (Flow* flow : flows) flow->batch_tokens = 0;
  const auto take = [&](Flow& flow) {
    items.push_back(TakeFrom(flow));
    flow.batch_tokens += items.back().sequence.length;
  };
  take(*first);
  int64_t longest = items[0].sequence.length;
  while (true) {
    Flow* best = nullptr;
    int64_t best_distance = 0;
    std::vector<Flow*> without_credit;
    for (Flow* flow : flows) {
      if (flow->deterministic || !flow->source.HasNext()) continue;
      const int64_t length = flow->source.NextLength();
      if (!limits.mixes_lengths && length != longest) continue;
      if (length > flow->most_tokens - flow->batch_tokens) continue;
      if ((static_cast<int64_t>(items.size()) + 1) * std::max(longest, length) > limits.max_tokens) continue;
      if (!Credits::Has(flow)) {
        without_credit.push_back(flow);
        continue;
      }
      const int64_t distance = std::abs(longest - length);
      if (best == nullptr || distance < best_distance) {
        best = flow;
        best_distance = distance;
        if (distance == 0) break;
      }
    }
    if (best == nullptr) {
      if (without_credit.empty()) return items;
      credits.Grant(without_credit);
      continue;
    }
    take(*best);
    longest = std::max(longest, items.back().sequence.length);
  }
}

std::vector<Flow*> SmallFlows(const std::vector<Flow*>& flows, const BatchLimits& limits) {
  std::vector<Flow*> small;
  int64_t others_tokens = 0;
  for (Flow* flow : flows) {
    if (flow->source.finished() && flow->share->deficit >= 0 &&
        flow->source.ready_tokens() <= limits.max_tokens / kSmallShare) {
      small.push_back(flow);
    } else {
      others_tokens += flow->source.ready_tokens();
    }
  }
  return others_tokens >= limits.max_tokens ? small : std::vector<Flow*>();
}

}  // namespace hookline
