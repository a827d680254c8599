#include "server/capture/selection.h"

#include <algorithm>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "server/base/status.h"

namespace hookline {
namespace {

std::vector<int32_t> Select(const Selection& selection, int64_t sequence, const std::vector<uint32_t>& ids) {
  std::vector<int32_t> positions;
  SelectPositions(selection, sequence, ids, &positions);
  return positions;
}

TEST(SelectionTest, SamplingIsAFunctionOfSeedSequenceAndPositionAlone) {
  Selection selection;
  selection.sample_rows = 8;
  selection.seed = 5;
  const std::vector<uint32_t> a(100, 1), b(100, 2);
  EXPECT_EQ(Select(selection, 3, a), Select(selection, 3, b));
  EXPECT_NE(Select(selection, 3, a), Select(selection, 4, a));
  selection.seed = 6;
  const auto other_seed = Select(selection, 3, a);
  selection.seed = 5;
  EXPECT_NE(Select(selection, 3, a), other_seed);
}

TEST(SelectionTest, SamplingFavoursNoPosition) {
  Selection selection;
  selection.sample_rows = 4;
  std::map<int32_t, int> counts;
  const std::vector<uint32_t> ids(16, 1);
  for (int64_t sequence = 0; sequence < 4000; ++sequence) {
    const auto positions = Select(selection, sequence, ids);
    ASSERT_EQ(std::set<int32_t>(positions.begin(), positions.end()).size(), 4u);
    for (int32_t position : positions) ++counts[position];
  }
  // The expectation is 1000, with a standard deviation of 27.
  for (int32_t position = 0; position < 16; ++position) EXPECT_NEAR(counts[position], 1000, 150) << position;
}

TEST(SelectionTest, SelectedPositionsCountsWithoutLooking) {
  for (int64_t skip : {0, 3}) {
    for (int64_t end : {-40, -2, 0, 4, 10, 50}) {
      for (int64_t stride : {1, 2, 7}) {
        for (int64_t sample : {0, 2, -1}) {
          Selection selection{skip, end, stride, {}, std::max<int64_t>(0, sample), 0};
          selection.last_only = sample < 0;
          for (int length : {1, 3, 4, 9, 30}) {
            EXPECT_EQ(SelectedPositions(selection, length),
                      static_cast<int64_t>(Select(selection, 0, std::vector<uint32_t>(length, 1)).size()));
          }
        }
      }
    }
  }
}

TEST(SelectionTest, ANegativeEndIsThatOfAPythonSlice) {
  Selection selection;
  selection.position_end = -2;
  EXPECT_EQ(Select(selection, 0, {1, 1, 1, 1, 1}), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_TRUE(Select(selection, 0, {1, 1}).empty());
  EXPECT_TRUE(Select(selection, 0, {1}).empty());
  selection.skip_first = 2;
  EXPECT_EQ(Select(selection, 0, {1, 1, 1, 1, 1}), (std::vector<int32_t>{2}));
}

TEST(SelectionTest, LastOnlyKeepsTheLastOfWhatTheOthersKeep) {
  Selection selection;
  selection.last_only = true;
  EXPECT_EQ(Select(selection, 0, {5, 6, 7}), (std::vector<int32_t>{2}));
  selection.exclude_token_ids = {7};
  EXPECT_EQ(Select(selection, 0, {5, 6, 7}), (std::vector<int32_t>{1}));
  EXPECT_TRUE(Select(selection, 0, {7, 7}).empty());
}

TEST(SelectionTest, WhatKeepsNothingOrContradictsItselfIsRefusedByField) {
  const auto field = [](const Selection& selection) {
    return FieldOf(NormalizeSelection(selection, /*vocabulary_size=*/100, /*max_sequence_length=*/10).status());
  };
  Selection selection;
  selection.position_end = -10;
  EXPECT_EQ(field(selection), "selection.position_end");
  selection.position_end = -9;
  EXPECT_EQ(field(selection), "");
  selection.skip_first = 1;
  EXPECT_EQ(field(selection), "selection.position_end");
  selection = {};
  selection.last_only = true;
  EXPECT_EQ(field(selection), "");
  selection.sample_rows = 2;
  EXPECT_EQ(field(selection), "selection.last_only");
}

}  // namespace
}  // namespace hookline
