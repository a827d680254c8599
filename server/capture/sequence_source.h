// The source of a capture's sequences: what the client sent, or a dataset. It never reads a file; the executor reads
// the tokens of a dataset's sequence.
#ifndef HOOKLINE_SERVER_CAPTURE_SEQUENCE_SOURCE_H_
#define HOOKLINE_SERVER_CAPTURE_SEQUENCE_SOURCE_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "server/capture/dataset_range.h"
#include "server/capture/plan.h"

namespace hookline {

struct Sequence {
  int64_t count = 0;          // its place in the order of the source; resume positions hold it
  int64_t index = 0;          // as provenance names it: its place in the dataset, or `count`
  int64_t length = 0;         // tokens
  std::vector<uint32_t> ids;  // empty for a dataset until DatasetRange::Read
};

// Not thread-safe.
class SequenceSource {
 public:
  // Begins at plan.position.batch_sequence. A source without a dataset waits for Add and Finish.
  explicit SequenceSource(const CapturePlan& plan);

  void Add(TokenBatch batch);
  void Finish() { finished_ = true; }
  bool finished() const { return finished_; }

  // HasNext: a sequence is ready now. Ended: none will come any more.
  bool HasNext() const;
  bool Ended() const { return finished_ && !HasNext(); }
  // Returns the length of the next sequence; HasNext() must hold.
  int64_t NextLength() const;
  // Returns the `count` of the next sequence.
  int64_t next_count() const { return next_count_; }
  Sequence Take();

  // Returns the tokens that were added and not yet taken.
  int64_t queued_tokens() const { return queued_tokens_; }
  // Returns the tokens in memory. A batch stays there until its last sequence is taken.
  int64_t held_tokens() const { return held_tokens_; }
  // Returns queued_tokens() or, for a dataset, the number of its tokens that are left.
  int64_t ready_tokens() const {
    return dataset_.has_value() ? (dataset_->end() - next_count_) * dataset_->length() : queued_tokens_;
  }

  // For deterministic captures: returns the size, in sequences, of the batch that starts at the next sequence. A batch
  // never spans two TokenBatches.
  int64_t NextBatchSequences() const;
  // Returns the size that this batch would have if its TokenBatch or dataset did not end.
  int64_t BatchSequences() const { return batch_sequences_; }

 private:
  struct Queued {
    TokenBatch batch;
    int64_t next = 0;
  };
  void BeginTokenBatch();
  int64_t SequencesPerBatch(int64_t sequence_length) const;

  const int64_t max_batch_tokens_;
  const std::optional<DatasetRange> dataset_;
  std::deque<Queued> queue_;
  int64_t next_count_;
  int64_t queued_tokens_ = 0;
  int64_t held_tokens_ = 0;
  int64_t batch_sequences_;  // 0: to be set by the next TokenBatch
  bool finished_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_SEQUENCE_SOURCE_H_
