#include "server/base/checked_math.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>

namespace hookline {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

TEST(CheckedMathTest, ComputesWhatFits) {
  EXPECT_EQ((CheckedInt64(3) * 4 + 5 - 1).value(), 16);
  EXPECT_EQ((CheckedInt64(kMost) - kMost).value(), 0);
  EXPECT_EQ((CheckedInt64(-1) * kMost - 1).value(), kLeast);
  CheckedInt64 sum = uint8_t{200};
  sum += size_t{100};
  sum *= 2;
  sum -= 1;
  EXPECT_EQ(sum.value(), 599);
}

TEST(CheckedMathTest, HasNoValueOnceAStepLeftTheRange) {
  EXPECT_EQ((CheckedInt64(kMost) + 1).value(), std::nullopt);
  EXPECT_EQ((CheckedInt64(kLeast) - 1).value(), std::nullopt);
  EXPECT_EQ((CheckedInt64(int64_t{1} << 32) * (int64_t{1} << 31)).value(), std::nullopt);
  EXPECT_EQ((CheckedInt64(kLeast) * -1).value(), std::nullopt);
  // An overflow leaves no value, even where later steps would bring the result back into range.
  EXPECT_EQ((CheckedInt64(kMost) + 1 - 1).value(), std::nullopt);
  EXPECT_EQ((CheckedInt64(kMost) * 2 * 0).value(), std::nullopt);
}

TEST(CheckedMathTest, KnowsNumbersThatOnlyUnsignedTypesHold) {
  EXPECT_EQ(CheckedInt64(uint64_t{1} << 63).value(), std::nullopt);
  EXPECT_EQ(CheckedInt64((uint64_t{1} << 63) - 1).value(), kMost);
}

TEST(CheckedMathTest, SaysWhetherARangeFits) {
  EXPECT_TRUE(RangeFits(0, 0, 0));
  EXPECT_TRUE(RangeFits(4, 6, 10));
  EXPECT_FALSE(RangeFits(4, 7, 10));
  EXPECT_FALSE(RangeFits(11, 0, 10));
  EXPECT_FALSE(RangeFits(-1, 1, 10));
  EXPECT_FALSE(RangeFits(5, -1, 10));
  EXPECT_FALSE(RangeFits(kMost, kMost, kMost));
  EXPECT_FALSE(RangeFits(uint64_t{0} - 8, 8, 10));
}

}  // namespace
}  // namespace hookline
