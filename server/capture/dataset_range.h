// The sequences of a dataset that a request names.
#ifndef HOOKLINE_SERVER_CAPTURE_DATASET_RANGE_H_
#define HOOKLINE_SERVER_CAPTURE_DATASET_RANGE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/capture/limits.h"
#include "server/capture/request.h"
#include "server/dataset/dataset.h"
#include "server/model/model.h"

namespace hookline {

// Sequences first_sequence to first_sequence + sequence_count - 1 of a dataset that is cut into sequences of
// sequence_length tokens, `epochs` times, in order or shuffled. A capture counts them in the order in which it takes
// them, from begin() to end() - 1, and its resume tokens hold that count.
struct DatasetRange {
  const Dataset* dataset = nullptr;  // null: no dataset
  int64_t sequence_length = 0;       // without the prepended token
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
  std::optional<uint32_t> prepend_token_id;
  std::optional<uint64_t> shuffle_seed;
  int64_t epochs = 1;
  int64_t skip_sequences = 0;

  int64_t begin() const { return first_sequence + skip_sequences; }
  int64_t end() const { return first_sequence + sequence_count * epochs; }
  // Returns the sequence of the dataset that comes at `count`, first_sequence <= count < end().
  //
  // With n = count - first_sequence, it is in epoch e = n / sequence_count and there at place i = n % sequence_count.
  // If shuffled, it is first_sequence + ShuffledOrder(sequence_count, mix(mix(shuffle_seed) + e))[i], with mix of
  // base/mix.h; otherwise it is first_sequence + i.
  int64_t SequenceAt(int64_t count) const;
  // Returns how many tokens each sequence has, the prepended one included.
  int64_t length() const { return sequence_length + (prepend_token_id.has_value() ? 1 : 0); }
  // Reads the tokens of sequence `sequence` of the dataset. It may wait for the disk, so call it without locks.
  // DATA_LOSS as in Dataset::ReadSequence.
  absl::Status Read(int64_t sequence, int64_t vocabulary_size, std::vector<uint32_t>* ids) const;
};

// Returns the part of the dataset `source.name` that `source` asks for, clipped to the dataset's end. `field` is the
// proto path of the source. NOT_FOUND: no such dataset. INVALID_ARGUMENT naming the field otherwise.
absl::StatusOr<DatasetRange> ResolveDatasetRange(const DatasetSource& source, absl::string_view field,
                                                 const ModelInfo& info, const CaptureLimits& limits,
                                                 const std::vector<const Dataset*>& datasets);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_DATASET_RANGE_H_
