#include "client/cpp/sequence_blocks.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

namespace hookline::client {
namespace {

using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int64_t kAny = int64_t{1} << 40;

BlockLimits Limits(int64_t tokens) {
  BlockLimits limits;
  limits.tokens = tokens;
  limits.bytes = kAny;
  return limits;
}

// Gives sequences of these lengths. Each id of a sequence is the sequence's index.
NextSequence Sequences(std::vector<int> lengths) {
  return [lengths = std::move(lengths), index = size_t{0}](v1::TokenSequence* sequence) mutable {
    if (index == lengths.size()) return absl::StatusOr<bool>(false);
    for (int i = 0; i < lengths[index]; ++i) sequence->add_ids(static_cast<uint32_t>(index));
    ++index;
    return absl::StatusOr<bool>(true);
  };
}

std::vector<SequenceBlock> All(BlockSource& source) {
  std::vector<SequenceBlock> blocks;
  while (true) {
    absl::StatusOr<std::optional<SequenceBlock>> block = source.Next();
    if (!block.ok() || !block->has_value()) {
      EXPECT_TRUE(block.ok()) << block.status();
      return blocks;
    }
    blocks.push_back(**std::move(block));
  }
}

TEST(TokenMessages, HoldNoMoreIdsThanTheyMayButALongSequenceGoesAlone) {
  TokenMessages messages(Sequences({4, 5, 30, 1, 1}), /*max_ids=*/10);
  v1::TokenBatch message;
  std::vector<int> sizes;
  while (*messages.Next(&message)) sizes.push_back(message.sequences_size());
  EXPECT_THAT(sizes, ElementsAre(2, 1, 2));
  EXPECT_EQ(message.sequences_size(), 0);
}

TEST(TokenBlocks, NameTheirFirstSequenceAndCountTheirRows) {
  const auto source = TokenBlocks(Sequences({4, 5, 30, 1, 1}), /*keeps_all_rows=*/true, Limits(10));
  const std::vector<SequenceBlock> blocks = All(*source);
  ASSERT_THAT(blocks, SizeIs(3));
  EXPECT_EQ(blocks[1].first_sequence, 2);
  EXPECT_EQ(blocks[1].rows, 30);
  EXPECT_EQ(blocks[2].first_sequence, 3);
  EXPECT_EQ(blocks[2].rows, 2);
  EXPECT_EQ(blocks[2].tokens.sequences(0).ids(0), 3u);
}

TEST(TokenBlocks, KnowOnlyTheMostRowsOfASelection) {
  const auto source = TokenBlocks(Sequences({4, 5}), /*keeps_all_rows=*/false, Limits(10));
  const std::vector<SequenceBlock> blocks = All(*source);
  ASSERT_THAT(blocks, SizeIs(1));
  EXPECT_EQ(blocks[0].rows, std::nullopt);
  EXPECT_EQ(blocks[0].most_rows, 9);
}

TEST(TokenBlocks, OfWideRowsHaveFewerTokens) {
  BlockLimits limits = Limits(1000);
  limits.bytes = 800;
  limits.row_bytes = 100;
  EXPECT_THAT(All(*TokenBlocks(Sequences({4, 4, 4, 4}), true, limits)), SizeIs(2));
}

TEST(TokenBlocks, AreTheMessagesOfOneServerWhereBatchesDependOnThem) {
  BlockLimits limits = Limits(10);
  limits.is_whole_messages = true;
  EXPECT_THAT(All(*TokenBlocks(Sequences({4, 5, 30, 1, 1}), true, limits)), SizeIs(1));
}

TEST(TokenBlocks, PassOnWhatTheSourceFailsOf) {
  const auto source = TokenBlocks([](v1::TokenSequence*) { return absl::DataLossError("torn"); }, true, Limits(10));
  EXPECT_TRUE(absl::IsDataLoss(source->Next().status()));
}

DatasetPart Part(int64_t count, int64_t tokens) {
  DatasetPart part;
  part.source.set_name("text");
  part.source.set_first_sequence(100);
  part.count = count;
  part.sequence_tokens = tokens;
  part.sequence_rows = tokens - 1;
  return part;
}

TEST(DatasetBlocks, HoldEachSequenceOnceInOrder) {
  DatasetPart part = Part(/*count=*/50, /*tokens=*/10);
  part.source.set_epochs(2);
  int64_t place = 0;
  for (const SequenceBlock& block : All(*DatasetBlocks(part, Limits(160)))) {
    EXPECT_EQ(block.dataset->first_sequence(), 100 + place % 50);
    EXPECT_EQ(block.dataset->epochs(), 1);
    EXPECT_LE(block.dataset->sequence_count(), 16);
    EXPECT_EQ(block.rows, block.dataset->sequence_count() * 9);
    EXPECT_FALSE(block.is_limited);
    place += block.dataset->sequence_count();
    EXPECT_TRUE(place <= 50 || place > 50 + 1) << "a block ends with the epoch";
  }
  EXPECT_EQ(place, 100);
}

TEST(DatasetBlocks, OfAShuffledDatasetAreNamedByTheirPlaces) {
  DatasetPart part = Part(/*count=*/50, /*tokens=*/10);
  part.source.set_shuffle_seed(7);
  part.source.set_epochs(2);
  const std::vector<SequenceBlock> blocks = All(*DatasetBlocks(part, Limits(300)));
  ASSERT_THAT(blocks, SizeIs(4));
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i].dataset->skip_sequences(), static_cast<int64_t>(i) * 30);
    EXPECT_EQ(blocks[i].dataset->sequence_count(), 50);
    EXPECT_EQ(blocks[i].dataset->epochs(), 2);
    EXPECT_EQ(blocks[i].rows, i < 3 ? 30 * 9 : 10 * 9);
    EXPECT_EQ(blocks[i].is_limited, i < 3) << "the last one ends with the source";
  }
}

TEST(DatasetBlocks, HoldWholeBatchesAcrossEpochsWhereTheyMust) {
  DatasetPart part = Part(/*count=*/50, /*tokens=*/10);
  part.source.set_epochs(2);
  BlockLimits limits = Limits(200);
  limits.batch_tokens = 79;  // seven sequences in a batch
  const std::vector<SequenceBlock> blocks = All(*DatasetBlocks(part, limits));
  ASSERT_THAT(blocks, SizeIs(8));
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i].dataset->skip_sequences(), static_cast<int64_t>(i) * 14);
  }
}

TEST(DatasetBlocks, OfAShortSourceAreEnoughForAllServers) {
  BlockLimits limits = Limits(int64_t{1} << 14);
  limits.blocks = 8;
  EXPECT_THAT(All(*DatasetBlocks(Part(/*count=*/64, /*tokens=*/512), limits)), SizeIs(Ge(8)));
  // Below that many tokens a call costs more than it gains.
  EXPECT_THAT(All(*DatasetBlocks(Part(/*count=*/64, /*tokens=*/64), limits)), SizeIs(2));
}

TEST(DatasetBlocks, OfNothingAreNone) {
  EXPECT_THAT(All(*DatasetBlocks(Part(/*count=*/0, /*tokens=*/10), Limits(160))), SizeIs(0));
}

TEST(PartOf, IsWhatTheServerTakesOfTheDataset) {
  v1::Dataset dataset;
  dataset.set_name("text");
  dataset.set_tokens(1005);
  v1::DatasetSource source;
  source.set_name("text");
  EXPECT_THAT(PartOf(source, dataset).status().message(), HasSubstr("give the length of its sequences"));
  source.set_sequence_length(10);
  source.set_first_sequence(20);
  source.set_prepend_token_id(256);
  EXPECT_EQ(PartOf(source, dataset)->count, 80);
  EXPECT_EQ(PartOf(source, dataset)->sequence_tokens, 11);
  source.set_sequence_count(30);
  EXPECT_EQ(PartOf(source, dataset)->count, 30);
  source.set_first_sequence(1000);
  EXPECT_EQ(PartOf(source, dataset)->count, 0);
  dataset.set_row_length(5);
  EXPECT_EQ(PartOf(source, dataset)->sequence_tokens, 6);
}

TEST(NameSequenceOfSource, NamesTheSequenceByItsPlaceInTheWholeSource) {
  const absl::Status status = absl::InvalidArgumentError("tokens.sequences[3].ids[1]: 999 is not below 512");
  EXPECT_EQ(NameSequenceOfSource(status, 40).message(), "tokens.sequences[43].ids[1]: 999 is not below 512");
  const absl::Status other = absl::InvalidArgumentError("hook_points[0]: unknown");
  EXPECT_EQ(NameSequenceOfSource(other, 40), other);
}

}  // namespace
}  // namespace hookline::client
