// Tests the forms in which rows leave the engine: top_k, dtypes with a scale, statistics alone.
#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "server/base/status.h"
#include "tests/engine/engine_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kNames = {"blocks.0.hook_resid_post", "blocks.2.hook_resid_post"};  // widths 8 and 10

class RowFormTest : public EngineTest {
 protected:
  const std::vector<std::vector<uint32_t>> sequences_ = Sequences({256, 3, 200, 64, 30});
};

TEST_F(RowFormTest, TopKBringsTheLargestEntriesWithTheirIndices) {
  options_.slab_count = 8;
  Create();
  CaptureRequest request = Request(kNames, sequences_);
  request.top_k = 3;
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  EXPECT_EQ(got.started->top_k, 3);
  const auto whole = Expected(request, kNames, sequences_);
  for (size_t h = 0; h < kNames.size(); ++h) {
    const auto width = static_cast<uint32_t>(whole[h].values[0].size());
    ASSERT_EQ(got.hook_points[h].values.size(), whole[h].values.size());
    for (size_t i = 0; i < whole[h].values.size(); ++i) {
      // The model's values grow along a row.
      const std::vector<float>& row = whole[h].values[i];
      EXPECT_EQ(got.hook_points[h].values[i], (std::vector<float>{row[width - 1], row[width - 2], row[width - 3]}));
      EXPECT_EQ(got.hook_points[h].indices[i], (std::vector<uint32_t>{width - 1, width - 2, width - 3}));
    }
    EXPECT_EQ(got.hook_points[h].sequence, whole[h].sequence);
    EXPECT_EQ(got.hook_points[h].position, whole[h].position);
  }
}

TEST_F(RowFormTest, TopKAboveAWidthIsRefused) {
  Create();
  CaptureRequest request = Request(kNames, sequences_);
  request.top_k = 9;
  const absl::Status status = Collector(*engine_, request).status();
  EXPECT_EQ(FieldOf(status), "top_k");
  EXPECT_THAT(status.message(), HasSubstr("blocks.0.hook_resid_post"));
  request.top_k = -1;
  EXPECT_EQ(FieldOf(Collector(*engine_, request).status()), "top_k");
}

TEST_F(RowFormTest, ScaledRowsAreTheModelsWithinTheErrorThatTheSummaryTells) {
  options_.slab_count = 8;
  Create();
  for (Dtype dtype : {Dtype::kInt8, Dtype::kFloat8E4M3}) {
    CaptureRequest request = Request(kNames, sequences_);
    request.dtype = dtype;
    Collector collector(*engine_, request);
    const Collected& got = collector.ReadAll();
    const auto whole = Expected(request, kNames, sequences_);
    for (size_t h = 0; h < kNames.size(); ++h) {
      double error = 0, squares = 0;
      ASSERT_EQ(got.hook_points[h].values.size(), whole[h].values.size());
      for (size_t i = 0; i < whole[h].values.size(); ++i) {
        for (size_t j = 0; j < whole[h].values[i].size(); ++j) {
          const double value = whole[h].values[i][j];
          error += std::pow(got.hook_points[h].values[i][j] - value, 2);
          squares += value * value;
        }
      }
      const double relative = std::sqrt(error / squares);
      EXPECT_GT(relative, 0);
      EXPECT_LT(relative, 0.03);
      EXPECT_NEAR(got.ended->hook_points[h].conversion_error, relative, 1e-5 * relative + 1e-9);
    }
  }
}

TEST_F(RowFormTest, PlainRowsHaveNoConversionError) {
  Create();
  Collector collector(*engine_, Request(kNames, sequences_));
  EXPECT_EQ(collector.ReadAll().ended->hook_points[0].conversion_error, 0);
  EXPECT_EQ(collector.collected().ended->hook_points[0].overflow_count, 0);
}

TEST_F(RowFormTest, StatisticsOnlySendsNoRowsAndTellsOfAll) {
  options_.slab_count = 8;
  Create();
  CaptureRequest request = Request(kNames, sequences_);
  request.max_activations_by_hook_point = {{kNames[1], 300}};
  request.statistics_only = true;
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
  EXPECT_TRUE(got.chunks.empty());
  EXPECT_EQ(got.ended->resume_token, got.started->resume_token);
  const auto whole = Expected(request, kNames, sequences_);
  for (size_t h = 0; h < kNames.size(); ++h) {
    const HookPointSummary& told = got.ended->hook_points[h];
    const auto rows = static_cast<int64_t>(whole[h].values.size());
    EXPECT_EQ(told.rows, rows);
    EXPECT_EQ(told.statistics_rows, rows);
    std::vector<double> sums(whole[h].values[0].size()), norms;
    for (const std::vector<float>& row : whole[h].values) {
      double squares = 0;
      for (size_t j = 0; j < row.size(); ++j) {
        sums[j] += row[j];
        squares += static_cast<double>(row[j]) * row[j];
      }
      norms.push_back(std::sqrt(squares));
    }
    ASSERT_EQ(told.mean_vector.size(), sums.size());
    for (size_t j = 0; j < sums.size(); ++j) {
      EXPECT_NEAR(told.mean_vector[j], sums[j] / static_cast<double>(rows), 1e-3);
    }
    std::sort(norms.begin(), norms.end());
    const double median = norms[static_cast<size_t>((rows + 1) / 2 - 1)];
    EXPECT_NEAR(told.row_norm_p50, median, 0.004 * median);
    EXPECT_LE(told.row_norm_p1, told.row_norm_p50);
    EXPECT_LE(told.row_norm_p50, told.row_norm_p99);
  }
}

TEST_F(RowFormTest, StatisticsCannotBeRecorded) {
  Create();
  CaptureRequest request = Request(kNames, sequences_);
  request.statistics_only = true;
  request.record_as = "rows";
  EXPECT_EQ(FieldOf(Collector(*engine_, request).status()), "statistics_only");
}

TEST_F(RowFormTest, LastOnlyAndNegativeEndsKeepWhatTheyName) {
  Create();
  std::vector<Selection> selections(4);
  selections[0].last_only = true;
  selections[1].position_end = -2;
  selections[2].position_end = -5;
  selections[2].last_only = true;
  selections[2].exclude_token_ids = {sequences_[0][250], sequences_[2][194]};
  selections[3].position_end = -3;
  selections[3].skip_first = 1;
  selections[3].position_stride = 4;
  for (const Selection& selection : selections) {
    CaptureRequest request = Request(kNames, sequences_);
    request.selection = selection;
    Collector collector(*engine_, request);
    ExpectSameRows(collector.ReadAll().hook_points, Expected(request, kNames, sequences_));
  }
}

}  // namespace
}  // namespace hookline
