// Cuts the source of a capture into blocks of whole sequences, each of which any server that holds the model can run by
// itself.
#ifndef HOOKLINE_CLIENT_CPP_SEQUENCE_BLOCKS_H_
#define HOOKLINE_CLIENT_CPP_SEQUENCE_BLOCKS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hookline/v1/capture_service.pb.h"
#include "hookline/v1/dataset_service.pb.h"
#include "hookline/v1/types.pb.h"

namespace hookline::client {

// Gives the next sequence, or returns false at the end.
using NextSequence = std::function<absl::StatusOr<bool>(v1::TokenSequence*)>;

// The most ids of a message: few enough that a capture begins at once. A longer sequence is sent alone.
inline constexpr int64_t kMessageIds = int64_t{1} << 16;

// Puts sequences into messages.
class TokenMessages {
 public:
  // A message has at most `max_ids` ids; one with a single sequence can have more.
  TokenMessages(NextSequence next, int64_t max_ids) : next_(std::move(next)), max_ids_(max_ids) {}

  // Fills `message` with the next sequences; at the end returns false and an empty message. Errors of the source come
  // after the sequences before them.
  absl::StatusOr<bool> Next(v1::TokenBatch* message);

 private:
  // Bounds the sequences too, so that a message of short sequences stays small.
  static constexpr int kMaxSequences = 4096;

  const NextSequence next_;
  const int64_t max_ids_;
  std::optional<v1::TokenSequence> held_;  // it did not fit into the last message
  bool has_ended_ = false;
  absl::Status end_status_;
};

// One part of a source: sequences that follow each other in the order in which the source gives them.
struct SequenceBlock {
  std::optional<v1::DatasetSource> dataset;  // none: the block's sequences are `tokens`
  v1::TokenBatch tokens;
  // Provenance and errors name a sequence this much higher than the server that runs the block does.
  int64_t first_sequence = 0;
  std::optional<int64_t> rows;  // rows that the selection keeps; none: only the server knows
  int64_t most_rows = 0;        // the most rows that the block can have
  // The server must be told to end after `rows`, because its source goes on.
  bool is_limited = false;
};

// The bounds of a block.
struct BlockLimits {
  int64_t tokens = 0;              // a block of one sequence can have more
  int64_t bytes = 0;               // bytes of rows; a block of one sequence can have more
  int64_t row_bytes = 1;           // the size of one row of all hook points
  int64_t blocks = 1;              // the least blocks of a short source, so that every server gets some
  int64_t batch_tokens = 0;        // tokens of a server's batch if blocks must hold whole batches, else 0
  bool is_whole_messages = false;  // blocks of tokens must be the messages that a single server would get
};

// Thread-compatible.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  // Returns the next block; none at the end. Errors are those of the source.
  virtual absl::StatusOr<std::optional<SequenceBlock>> Next() = 0;
};

// Makes blocks of sequences that come one by one. `keeps_all_rows` says that there is no selection.
std::unique_ptr<BlockSource> TokenBlocks(NextSequence next, bool keeps_all_rows, const BlockLimits& limits);

// The part of a dataset that a capture reads, computed as a server does.
struct DatasetPart {
  v1::DatasetSource source;              // the source of the whole capture
  int64_t count = 0;                     // sequences of one epoch
  int64_t sequence_tokens = 0;           // tokens of a sequence, including the prepended one
  std::optional<int64_t> sequence_rows;  // rows that the selection keeps of each sequence; none: they differ
};

// Returns the part of `dataset` that `source` asks for. INVALID_ARGUMENT: the dataset is a stream and `source` does not
// say where to cut it.
absl::StatusOr<DatasetPart> PartOf(const v1::DatasetSource& source, const v1::Dataset& dataset);

// Returns whether a block's sequences can only be named by their places in the order over all epochs: the dataset is
// shuffled, or a batch can hold sequences of two epochs. `sequence_rows` must be known then.
bool NeedsPlaces(const v1::DatasetSource& source, const BlockLimits& limits);

std::unique_ptr<BlockSource> DatasetBlocks(const DatasetPart& part, const BlockLimits& limits);

// Returns a server's error about a sequence, which it names by its index in a block, with the index in the source
// instead. The block begins with sequence `first_sequence` of the source.
absl::Status NameSequenceOfSource(const absl::Status& status, int64_t first_sequence);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_SEQUENCE_BLOCKS_H_
