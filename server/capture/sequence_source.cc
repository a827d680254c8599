#include "server/capture/sequence_source.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"

namespace hookline {

absl::Status ReadIds(int64_t vocabulary_size, Sequence* sequence) {
  if (sequence->unread == nullptr) return absl::OkStatus();
  const Dataset& dataset = *std::exchange(sequence->unread, nullptr);
  return dataset.ReadSequence(sequence->index, vocabulary_size,
                              absl::MakeSpan(sequence->ids).subspan(sequence->prepended));
}

SequenceSource::SequenceSource(const CapturePlan& plan, int64_t max_batch_tokens)
    : max_batch_tokens_(max_batch_tokens),
      dataset_(plan.dataset),
      dataset_source_(plan.dataset_source),
      dataset_end_(plan.dataset_source.first_sequence + plan.dataset_source.sequence_count),
      next_index_(plan.position.batch_sequence),
      batch_sequences_(plan.position.batch_sequences),
      finished_(plan.dataset != nullptr) {
  if (dataset_ != nullptr && batch_sequences_ == 0) batch_sequences_ = BatchSequencesOf(NextLength());
}

int64_t SequenceSource::BatchSequencesOf(int64_t length) const {
  return std::max<int64_t>(1, max_batch_tokens_ / length);
}

void SequenceSource::Add(TokenBatch batch) {
  if (batch.sequences.empty()) return;
  for (const std::vector<uint32_t>& ids : batch.sequences) queued_tokens_ += static_cast<int64_t>(ids.size());
  queue_.push_back({std::move(batch.sequences), 0});
  if (queue_.size() == 1) BeginTokenBatch();
}

// A resume names the size of the batch that was cut; after that each TokenBatch has its own, by its longest sequence.
void SequenceSource::BeginTokenBatch() {
  if (batch_sequences_ != 0) return;
  size_t longest = 1;
  for (const std::vector<uint32_t>& ids : queue_.front().sequences) longest = std::max(longest, ids.size());
  batch_sequences_ = BatchSequencesOf(static_cast<int64_t>(longest));
}

bool SequenceSource::HasNext() const { return dataset_ != nullptr ? next_index_ < dataset_end_ : !queue_.empty(); }

int64_t SequenceSource::NextLength() const {
  if (dataset_ != nullptr) {
    return dataset_source_.sequence_length + (dataset_source_.prepend_token_id.has_value() ? 1 : 0);
  }
  return static_cast<int64_t>(queue_.front().sequences[queue_.front().next].size());
}

Sequence SequenceSource::Take() {
  Sequence sequence;
  sequence.index = next_index_++;
  if (dataset_ != nullptr) {
    sequence.unread = dataset_;
    sequence.prepended = dataset_source_.prepend_token_id.has_value() ? 1 : 0;
    sequence.ids.resize(sequence.prepended + dataset_source_.sequence_length);
    if (sequence.prepended != 0) sequence.ids[0] = *dataset_source_.prepend_token_id;
    return sequence;
  }
  Queued& front = queue_.front();
  sequence.ids = std::move(front.sequences[front.next]);
  queued_tokens_ -= static_cast<int64_t>(sequence.ids.size());
  if (++front.next == front.sequences.size()) {
    queue_.pop_front();
    batch_sequences_ = 0;
    if (!queue_.empty()) BeginTokenBatch();
  }
  return sequence;
}

// A resume's batch may be smaller than its token says: the token may be of a server that allowed more, or forged.
int64_t SequenceSource::NextBatchSequences() const {
  if (dataset_ != nullptr) {
    return std::min({dataset_end_ - next_index_, batch_sequences_, BatchSequencesOf(NextLength())});
  }
  const Queued& front = queue_.front();
  size_t longest = 1;
  int64_t count = 0;
  for (size_t i = front.next; i < front.sequences.size() && count < batch_sequences_; ++i, ++count) {
    longest = std::max(longest, front.sequences[i].size());
    if (count >= BatchSequencesOf(static_cast<int64_t>(longest))) break;
  }
  return count;
}

}  // namespace hookline
