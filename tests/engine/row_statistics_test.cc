#include "server/engine/row_statistics.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace hookline {
namespace {

HookPointSummary Of(const std::vector<float>& values, int64_t width) {
  RowStatistics statistics;
  statistics.Add(reinterpret_cast<const uint8_t*>(values.data()), static_cast<int64_t>(values.size()) / width,
                 {Dtype::kFloat32, width});
  HookPointSummary summary;
  statistics.Summarize(&summary);
  return summary;
}

TEST(RowStatisticsTest, CountsWhatIsNotFiniteAndLeavesItOut) {
  const float inf = std::numeric_limits<float>::infinity();
  const HookPointSummary summary = Of({3, 4, inf, -inf, NAN, 12}, 2);
  EXPECT_EQ(summary.statistics_rows, 3);
  EXPECT_EQ(summary.nan_count, 1);
  EXPECT_EQ(summary.infinity_count, 2);
  EXPECT_DOUBLE_EQ(summary.mean, 19.0 / 3);
  EXPECT_DOUBLE_EQ(summary.rms, std::sqrt((9.0 + 16 + 144) / 3));
  EXPECT_DOUBLE_EQ(summary.mean_row_norm, (5.0 + 0 + 12) / 3);
}

TEST(RowStatisticsTest, MeansOfNoFiniteValueAreNotZero) {
  const HookPointSummary summary = Of({NAN, NAN, NAN, INFINITY}, 2);
  EXPECT_EQ(summary.nan_count, 3);
  EXPECT_TRUE(std::isnan(summary.mean_row_norm));
  EXPECT_TRUE(std::isnan(summary.mean));
  EXPECT_TRUE(std::isnan(summary.rms));
  EXPECT_EQ(Of({}, 2).mean_row_norm, 0);
}

TEST(RowStatisticsTest, SquaresThatOverflowAreStillCounted) {
  const HookPointSummary summary = Of(std::vector<float>(32, 1e30f), 32);
  EXPECT_EQ(summary.infinity_count, 0);
  EXPECT_NEAR(summary.rms / 1e30, 1, 1e-6);
}

TEST(RowStatisticsTest, SumsThatAreKnownAreTakenUnlessTheyAreNotFinite) {
  const std::vector<float> values = {3, 4, NAN, 12};
  const std::vector<float> sums = {100, NAN}, norms = {50, NAN};
  RowStatistics statistics;
  statistics.Add(reinterpret_cast<const uint8_t*>(values.data()), 2, {Dtype::kFloat32, 2}, {sums, norms});
  HookPointSummary summary;
  statistics.Summarize(&summary);
  EXPECT_EQ(summary.nan_count, 1);
  EXPECT_DOUBLE_EQ(summary.mean, (100.0 + 12) / 3);
  EXPECT_DOUBLE_EQ(summary.rms, std::sqrt((2500.0 + 144) / 3));
  EXPECT_DOUBLE_EQ(summary.mean_row_norm, (50.0 + 12) / 2);
}

TEST(RowStatisticsTest, EveryHalfPrecisionValueIsReadAsItIs) {
  for (int bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    RowStatistics statistics;
    statistics.Add(reinterpret_cast<const uint8_t*>(&half), 1, {Dtype::kFloat16, 1});
    HookPointSummary summary;
    statistics.Summarize(&summary);
    const int exponent = (bits >> 10) & 31;
    const int fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 31) {
      EXPECT_EQ(summary.nan_count, fraction != 0);
      EXPECT_EQ(summary.infinity_count, fraction == 0);
    } else {
      const double value = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(summary.mean, sign * value) << bits;
    }
  }
}

TEST(RowStatisticsTest, BrainFloatsAreTheUpperHalfOfFloats) {
  const std::vector<uint16_t> row = {0x3f80, 0xc000, 0x4040};  // 1, -2, 3
  RowStatistics statistics;
  statistics.Add(reinterpret_cast<const uint8_t*>(row.data()), 1, {Dtype::kBFloat16, 3});
  HookPointSummary summary;
  statistics.Summarize(&summary);
  EXPECT_DOUBLE_EQ(summary.mean, 2.0 / 3);
  EXPECT_DOUBLE_EQ(summary.mean_row_norm, std::sqrt(14));
}

}  // namespace
}  // namespace hookline
