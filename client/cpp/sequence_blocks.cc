#include "client/cpp/sequence_blocks.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// Below this many tokens, a block's call costs more than running blocks in parallel gains.
constexpr int64_t kLeastBlockTokens = int64_t{1} << 11;

int64_t CeilOf(int64_t a, int64_t b) { return (a + b - 1) / b; }

class BlocksOfTokens final : public BlockSource {
 public:
  BlocksOfTokens(NextSequence next, bool keeps_all_rows, int64_t max_ids)
      : messages_(std::move(next), max_ids), keeps_all_rows_(keeps_all_rows) {}

  absl::StatusOr<std::optional<SequenceBlock>> Next() override {
    SequenceBlock block;
    ASSIGN_OR_RETURN(const bool more, messages_.Next(&block.tokens));
    if (!more) return std::nullopt;
    block.first_sequence = first_sequence_;
    first_sequence_ += block.tokens.sequences_size();
    for (const v1::TokenSequence& sequence : block.tokens.sequences()) block.most_rows += sequence.ids_size();
    if (keeps_all_rows_) block.rows = block.most_rows;
    return block;
  }

 private:
  TokenMessages messages_;
  const bool keeps_all_rows_;
  int64_t first_sequence_ = 0;
};

class BlocksOfDataset final : public BlockSource {
 public:
  BlocksOfDataset(const DatasetPart& part, const BlockLimits& limits)
      : part_(part), limits_(limits), place_(part.source.skip_sequences()) {}

  absl::StatusOr<std::optional<SequenceBlock>> Next() override {
    const int64_t epochs = std::max(1, part_.source.epochs());
    if (part_.count == 0 || place_ >= part_.count * epochs) return std::nullopt;
    const int64_t index = place_ % part_.count;
    // If the dataset is read in order, the block is named by its first sequence, and it ends with the epoch.
    const bool is_named = !NeedsPlaces(part_.source, limits_);
    const int64_t left = is_named ? part_.count - index : part_.count * epochs - place_;
    const int64_t sequences = SequencesOf(left);
    SequenceBlock block;
    v1::DatasetSource source = part_.source;
    if (is_named) {
      source.set_first_sequence(part_.source.first_sequence() + index);
      source.set_sequence_count(sequences);
      source.set_epochs(1);
      source.set_skip_sequences(0);
    } else {
      source.set_sequence_count(part_.count);
      source.set_skip_sequences(place_);
      block.is_limited = place_ + sequences < part_.count * epochs;
    }
    block.dataset = std::move(source);
    if (part_.sequence_rows.has_value()) block.rows = sequences * *part_.sequence_rows;
    block.most_rows = sequences * part_.sequence_rows.value_or(part_.sequence_tokens);
    place_ += sequences;
    return block;
  }

 private:
  int64_t SequencesOf(int64_t left) const {
    const int64_t length = part_.sequence_tokens;
    const int64_t row_bytes = part_.sequence_rows.value_or(length) * limits_.row_bytes;
    // Blocks bound the rows that wait; if no row is kept, one block will do.
    if (row_bytes == 0) return left;
    int64_t most = std::min(limits_.tokens / length, limits_.bytes / row_bytes);
    most = std::min(most, std::max(CeilOf(left, limits_.blocks), CeilOf(kLeastBlockTokens, length)));
    const int64_t batch = limits_.batch_tokens == 0 ? 1 : std::max<int64_t>(1, limits_.batch_tokens / length);
    return std::min(left, std::max<int64_t>(1, most / batch) * batch);
  }

  const DatasetPart part_;
  const BlockLimits limits_;
  int64_t place_;  // the place of the next sequence, over all epochs
};

}  // namespace

absl::StatusOr<bool> TokenMessages::Next(v1::TokenBatch* message) {
  message->Clear();
  int64_t ids = 0;
  while (!has_ended_) {
    if (!held_.has_value()) {
      v1::TokenSequence sequence;
      const absl::StatusOr<bool> more = next_(&sequence);
      if (!more.ok() || !*more) {
        has_ended_ = true;
        end_status_ = more.status();
        break;
      }
      held_ = std::move(sequence);
    }
    const bool is_full = ids + held_->ids_size() > max_ids_ || message->sequences_size() == kMaxSequences;
    if (is_full && message->sequences_size() > 0) return true;
    ids += held_->ids_size();
    *message->add_sequences() = *std::move(held_);
    held_.reset();
  }
  if (message->sequences_size() > 0) return true;
  RETURN_IF_ERROR(end_status_);
  return false;
}

std::unique_ptr<BlockSource> TokenBlocks(NextSequence next, bool keeps_all_rows, const BlockLimits& limits) {
  const int64_t most = std::min(limits.tokens, std::max<int64_t>(1, limits.bytes / limits.row_bytes));
  return std::make_unique<BlocksOfTokens>(std::move(next), keeps_all_rows,
                                          limits.is_whole_messages ? kMessageIds : most);
}

absl::StatusOr<DatasetPart> PartOf(const v1::DatasetSource& source, const v1::Dataset& dataset) {
  const int64_t length = dataset.row_length() > 0 ? dataset.row_length() : source.sequence_length();
  if (length < 1) {
    return InvalidField(
        "dataset.sequence_length",
        absl::StrCat("dataset ", dataset.name(), " is a stream of tokens; give the length of its sequences"));
  }
  DatasetPart part;
  part.source = source;
  part.count = std::max<int64_t>(0, dataset.tokens() / length - source.first_sequence());
  if (source.sequence_count() > 0) part.count = std::min(part.count, source.sequence_count());
  part.sequence_tokens = length + (source.has_prepend_token_id() ? 1 : 0);
  return part;
}

bool NeedsPlaces(const v1::DatasetSource& source, const BlockLimits& limits) {
  return source.has_shuffle_seed() || (limits.batch_tokens > 0 && source.epochs() > 1);
}

std::unique_ptr<BlockSource> DatasetBlocks(const DatasetPart& part, const BlockLimits& limits) {
  return std::make_unique<BlocksOfDataset>(part, limits);
}

absl::Status NameSequenceOfSource(const absl::Status& status, int64_t first_sequence) {
  constexpr absl::string_view kPath = "tokens.sequences[";
  const absl::string_view message = status.message();
  const size_t path = message.find(kPath);
  if (first_sequence == 0 || path == absl::string_view::npos) return status;
  const size_t begin = path + kPath.size(), end = message.find(']', begin);
  int64_t index = 0;
  if (end == absl::string_view::npos || !absl::SimpleAtoi(message.substr(begin, end - begin), &index)) return status;
  return absl::Status(status.code(),
                      absl::StrCat(message.substr(0, begin), index + first_sequence, message.substr(end)));
}

}  // namespace hookline::client
