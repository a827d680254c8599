#include "server/capture/sequence_source.h"

#include <algorithm>
#include <utility>

namespace hookline {

SequenceSource::SequenceSource(const CapturePlan& plan)
    : max_batch_tokens_(plan.limits.max_batch_tokens),
      dataset_(plan.dataset.dataset != nullptr ? std::make_optional(plan.dataset) : std::nullopt),
      next_count_(plan.position.batch_sequence),
      batch_sequences_(plan.position.batch_sequences),
      finished_(dataset_.has_value()) {
  if (dataset_.has_value() && batch_sequences_ == 0) batch_sequences_ = SequencesPerBatch(dataset_->length());
}

int64_t SequenceSource::SequencesPerBatch(int64_t sequence_length) const {
  return std::max<int64_t>(1, max_batch_tokens_ / sequence_length);
}

void SequenceSource::Add(TokenBatch batch) {
  if (batch.empty()) return;
  queued_tokens_ += batch.tokens();
  held_tokens_ += batch.tokens();
  queue_.push_back({std::move(batch), 0});
  if (queue_.size() == 1) BeginTokenBatch();
}

// A resume gives the size of the batch in which it begins. After that, each TokenBatch has its own size, which follows
// from its longest sequence.
void SequenceSource::BeginTokenBatch() {
  if (batch_sequences_ != 0) return;
  size_t longest = 1;
  const TokenBatch& batch = queue_.front().batch;
  for (int64_t i = 0; i < batch.sequences(); ++i) longest = std::max(longest, batch[i].size());
  batch_sequences_ = SequencesPerBatch(static_cast<int64_t>(longest));
}

bool SequenceSource::HasNext() const { return dataset_.has_value() ? next_count_ < dataset_->end() : !queue_.empty(); }

int64_t SequenceSource::NextLength() const {
  if (dataset_.has_value()) return dataset_->length();
  return static_cast<int64_t>(queue_.front().batch[queue_.front().next].size());
}

Sequence SequenceSource::Take() {
  Sequence sequence;
  sequence.count = next_count_++;
  sequence.index = dataset_.has_value() ? dataset_->SequenceAt(sequence.count) : sequence.count;
  sequence.length = NextLength();
  if (dataset_.has_value()) return sequence;
  Queued& front = queue_.front();
  const absl::Span<const uint32_t> ids = front.batch[front.next];
  sequence.ids.assign(ids.begin(), ids.end());
  queued_tokens_ -= sequence.length;
  if (++front.next == front.batch.sequences()) {
    held_tokens_ -= front.batch.tokens();
    queue_.pop_front();
    batch_sequences_ = 0;
    if (!queue_.empty()) BeginTokenBatch();
  }
  return sequence;
}

// A resume's batch may be smaller than its token says, because the token may come from a server that allowed more, or
// be forged.
int64_t SequenceSource::NextBatchSequences() const {
  if (dataset_.has_value()) {
    return std::min({dataset_->end() - next_count_, batch_sequences_, SequencesPerBatch(dataset_->length())});
  }
  const Queued& front = queue_.front();
  size_t longest = 1;
  int64_t count = 0;
  for (int64_t i = front.next; i < front.batch.sequences() && count < batch_sequences_; ++i, ++count) {
    longest = std::max(longest, front.batch[i].size());
    if (count >= SequencesPerBatch(static_cast<int64_t>(longest))) break;
  }
  return count;
}

}  // namespace hookline
