#include "server/engine/row_profile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"

namespace hookline {
namespace {

const uint8_t* Bytes(const std::vector<float>& values) { return reinterpret_cast<const uint8_t*>(values.data()); }

HookPointSummary Of(const std::vector<float>& values, int64_t width) {
  RowProfile profile(width);
  const int64_t rows = static_cast<int64_t>(values.size()) / width;
  const int64_t first = rows / 3;  // the rows are added in two parts
  profile.Add(Bytes(values), first, {Dtype::kFloat32, width});
  profile.Add(Bytes(values) + first * width * 4, rows - first, {Dtype::kFloat32, width});
  HookPointSummary summary;
  profile.Summarize(&summary);
  return summary;
}

TEST(RowProfileTest, QuantilesAreExactToFourInAThousandWhateverTheNormsAre) {
  std::mt19937 random(5);
  for (double spread : {0.01, 1.0, 20.0}) {
    std::lognormal_distribution<float> distribution(1.0f, static_cast<float>(spread));
    std::vector<float> norms;
    for (int i = 0; i < 5000; ++i) norms.push_back(distribution(random));
    const HookPointSummary summary = Of(norms, 1);
    std::sort(norms.begin(), norms.end());
    const auto quantile = [&](double share) {
      return std::clamp<double>(norms[static_cast<size_t>(std::ceil(share * 5000)) - 1], 0, 3.4e38);
    };
    EXPECT_NEAR(summary.row_norm_p1, quantile(0.01), 0.004 * quantile(0.01) + 1.2e-38);
    EXPECT_NEAR(summary.row_norm_p50, quantile(0.5), 0.004 * quantile(0.5));
    EXPECT_NEAR(summary.row_norm_p99, quantile(0.99), 0.004 * quantile(0.99));
    const auto far = static_cast<double>(
        std::count_if(norms.begin(), norms.end(), [&](float norm) { return norm > 10 * quantile(0.5); }));
    EXPECT_NEAR(summary.outlier_row_share, far / 5000, 0.005);
  }
}

TEST(RowProfileTest, OutliersAreRowsBeyondTenMedians) {
  std::vector<float> norms(98, 2.0f);
  norms.push_back(19.0f);
  norms.push_back(21.0f);
  EXPECT_DOUBLE_EQ(Of(norms, 1).outlier_row_share, 0.01);
}

TEST(RowProfileTest, TheMeanVectorLeavesOutWhatIsNotFinite) {
  const float inf = std::numeric_limits<float>::infinity();
  const HookPointSummary summary = Of({1, NAN, 2, 5, inf, 3, 6, -inf, 4}, 3);
  EXPECT_EQ(summary.mean_vector[0], 4.0f);
  EXPECT_TRUE(std::isnan(summary.mean_vector[1]));
  EXPECT_EQ(summary.mean_vector[2], 3.0f);
}

TEST(RowProfileTest, EntriesThatTopKLeavesOutCountAsZero) {
  const RowLayout layout{Dtype::kFloat32, /*width=*/4, /*top_k=*/1};
  std::vector<float> row(2);
  const uint32_t index = 2;
  std::memcpy(row.data(), &index, 4);
  row[1] = 8;
  RowProfile profile(4);
  profile.Add(Bytes(row), 1, layout);
  const uint32_t other = 0;
  std::memcpy(row.data(), &other, 4);
  profile.Add(Bytes(row), 1, layout);
  HookPointSummary summary;
  profile.Summarize(&summary);
  EXPECT_THAT(summary.mean_vector, ::testing::ElementsAre(4, 0, 4, 0));
}

TEST(RowProfileTest, NoRowsHaveNoNorms) {
  const HookPointSummary summary = Of({}, 2);
  EXPECT_EQ(summary.row_norm_p50, 0);
  EXPECT_EQ(summary.mean_vector.size(), 2u);
}

}  // namespace
}  // namespace hookline
