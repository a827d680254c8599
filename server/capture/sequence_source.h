// Where a capture's sequences come from, one after another: what the client sent, or a dataset.
#ifndef HOOKLINE_SERVER_CAPTURE_SEQUENCE_SOURCE_H_
#define HOOKLINE_SERVER_CAPTURE_SEQUENCE_SOURCE_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "server/capture/capture_plan.h"
#include "server/capture/request.h"

namespace hookline {

struct Sequence {
  int64_t index = 0;  // from the start of the source; in a dataset, the dataset's
  std::vector<uint32_t> ids;
  // Where ids are still to be read from, all but the first `prepended`; null: all are there.
  const Dataset* unread = nullptr;
  size_t prepended = 0;
};

// Reads the ids of a dataset's sequence, which may wait for the disk: to be called without locks. DATA_LOSS as
// Dataset::ReadSequence.
absl::Status ReadIds(int64_t vocabulary_size, Sequence* sequence);

// Not thread-safe.
class SequenceSource {
 public:
  // Begins at plan.position.batch_sequence. A source without a dataset waits for Add and Finish.
  SequenceSource(const CapturePlan& plan, int64_t max_batch_tokens);

  void Add(TokenBatch batch);
  void Finish() { finished_ = true; }
  bool finished() const { return finished_; }

  // Whether a sequence is there now, and whether none will ever come again.
  bool HasNext() const;
  bool Ended() const { return finished_ && !HasNext(); }
  // Of the next sequence; HasNext() must hold.
  int64_t NextLength() const;
  int64_t next_index() const { return next_index_; }
  // A dataset's has its length, but its ids only after ReadIds.
  Sequence Take();

  // Tokens given by Add and not yet taken.
  int64_t queued_tokens() const { return queued_tokens_; }
  // The same, or all that is left of a dataset.
  int64_t ready_tokens() const {
    return dataset_ != nullptr ? (dataset_end_ - next_index_) * NextLength() : queued_tokens_;
  }

  // Deterministic captures: how many sequences the batch has that the next one begins, and of how many such a batch has
  // when its TokenBatch (or dataset) does not end. Never spans two TokenBatches.
  int64_t NextBatchSequences() const;
  int64_t BatchSequences() const { return batch_sequences_; }

 private:
  struct Queued {
    std::vector<std::vector<uint32_t>> sequences;
    size_t next = 0;
  };
  void BeginTokenBatch();
  // Of this length, in a batch.
  int64_t BatchSequencesOf(int64_t length) const;

  const int64_t max_batch_tokens_;
  const Dataset* const dataset_;
  const DatasetSource dataset_source_;
  const int64_t dataset_end_;
  std::deque<Queued> queue_;
  int64_t next_index_;
  int64_t queued_tokens_ = 0;
  int64_t batch_sequences_;  // 0: to be set by the next TokenBatch
  bool finished_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_SEQUENCE_SOURCE_H_
