#include "server/capture/selection.h"

#include <map>
#include <set>

#include "gmock/gmock.h"

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
  // 1000 expected with a standard deviation of 27.
  for (int32_t position = 0; position < 16; ++position) EXPECT_NEAR(counts[position], 1000, 150) << position;
}

TEST(SelectionTest, SelectedPositionsCountsWithoutLooking) {
  for (int64_t skip : {0, 3}) {
    for (int64_t end : {0, 4, 10, 50}) {
      for (int64_t stride : {1, 2, 7}) {
        for (int64_t sample : {0, 2}) {
          const Selection selection{skip, end, stride, {}, sample, 0};
          for (int length : {1, 3, 4, 9, 30}) {
            EXPECT_EQ(SelectedPositions(selection, length),
                      static_cast<int64_t>(Select(selection, 0, std::vector<uint32_t>(length, 1)).size()));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace hookline
