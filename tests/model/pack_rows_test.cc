#include "server/model/pack_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "server/base/row_values.h"
#include "server/model/transfer.h"

namespace hookline {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

at::Tensor Rows(const std::vector<std::vector<float>>& rows) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size())}, at::kFloat);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy(rows[i].begin(), rows[i].end(), tensor.data_ptr<float>() + i * rows[0].size());
  }
  return tensor;
}

std::vector<std::vector<float>> Random(int64_t rows, int64_t width, float scale) {
  const at::Tensor tensor = at::randn({rows, width}) * scale;
  std::vector<std::vector<float>> out;
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = tensor.data_ptr<float>() + i * width;
    out.emplace_back(row, row + width);
  }
  return out;
}

struct Read {
  std::vector<std::vector<float>> values;
  std::vector<std::vector<uint32_t>> indices;
  std::vector<float> scales;
};

Read ReadBack(const PackedRows& packed, const RowLayout& layout) {
  EXPECT_EQ(packed.bytes.size(1), layout.bytes());
  Read read;
  for (int64_t i = 0; i < packed.bytes.size(0); ++i) {
    const uint8_t* row = packed.bytes.data_ptr<uint8_t>() + i * layout.bytes();
    read.scales.push_back(RowScale(layout, row));
    read.values.emplace_back(layout.numbers());
    ReadValues(layout, row, read.values.back().data());
    read.indices.emplace_back(layout.top_k);
    ReadIndices(layout, row, read.indices.back().data());
  }
  return read;
}

// Returns the number of the dtype that is nearest to `x`, and the even one of two; compares with all numbers.
float Nearest(float x, Dtype dtype) {
  float best = 0;
  int best_code = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    const float number = dtype == Dtype::kInt8 ? Int8Reader::Read(&byte) : Float8E4M3Reader::Read(&byte);
    if (std::isnan(number) || (number == 0 && code != 0) || (dtype == Dtype::kInt8 && number == -128)) continue;
    const double off = std::abs(static_cast<double>(number) - x);
    if (off < distance || (off == distance && code % 2 == 0 && best_code % 2 != 0)) {
      best = number;
      best_code = code;
      distance = off;
    }
  }
  return best;
}

TEST(PackRowsTest, NumbersOfAScaledRowAreTheNearestTiesToEven) {
  at::manual_seed(3);
  for (Dtype dtype : {Dtype::kInt8, Dtype::kFloat8E4M3}) {
    const float most = dtype == Dtype::kInt8 ? 127.0f : 448.0f;
    std::vector<std::vector<float>> rows = Random(20, 33, 5.0f);
    rows.push_back(Random(1, 33, 1e-30f)[0]);
    rows.push_back(Random(1, 33, 1e30f)[0]);
    // With the scale 1 each number stands for itself: exact ties, subnormal numbers and zero.
    rows.push_back(std::vector<float>(33, 0.5f));
    rows.back()[0] = most;
    for (int i = 1; i < 33; ++i) rows.back()[i] = std::ldexp(static_cast<float>(i - 16), i % 3 == 0 ? -10 : -1);
    const RowLayout layout{dtype, 33};
    const Read read = ReadBack(PackRows(Rows(rows), layout), layout);
    for (size_t i = 0; i < rows.size(); ++i) {
      float largest = 0;
      for (float value : rows[i]) largest = std::max(largest, std::abs(value));
      EXPECT_EQ(read.scales[i], largest / most);
      for (size_t j = 0; j < rows[i].size(); ++j) {
        const float number = Nearest(rows[i][j] / read.scales[i], dtype);
        EXPECT_EQ(read.values[i][j], read.scales[i] * number) << rows[i][j] << " in row " << i;
      }
    }
  }
}

TEST(PackRowsTest, TheLossIsThatOfTheConversion) {
  const std::vector<std::vector<float>> rows = Random(7, 50, 3.0f);
  for (Dtype dtype : {Dtype::kInt8, Dtype::kFloat8E4M3}) {
    const RowLayout layout{dtype, 50};
    const PackedRows packed = PackRows(Rows(rows), layout);
    const Read read = ReadBack(packed, layout);
    double error = 0, squares = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      for (size_t j = 0; j < rows[i].size(); ++j) {
        error += std::pow(static_cast<double>(read.values[i][j]) - rows[i][j], 2);
        squares += std::pow(static_cast<double>(rows[i][j]), 2);
      }
    }
    const ConversionLoss loss = ReadLoss(packed.loss.data_ptr<double>());
    EXPECT_NEAR(loss.error_squares, error, 1e-6 * error);
    EXPECT_NEAR(loss.value_squares, squares, 1e-6 * squares);
    EXPECT_LT(std::sqrt(loss.error_squares / loss.value_squares), dtype == Dtype::kInt8 ? 0.02 : 0.05);
    EXPECT_EQ(loss.overflows, 0);
  }
}

TEST(PackRowsTest, ARowThatIsNotFiniteReadsAsNanAndARowOfZerosAsZeros) {
  for (Dtype dtype : {Dtype::kInt8, Dtype::kFloat8E4M3}) {
    const RowLayout layout{dtype, 3};
    const PackedRows packed = PackRows(Rows({{1, kNan, 2}, {1, -kInf, 2}, {0, 0, -0.0f}, {1, 2, 3}}), layout);
    const Read read = ReadBack(packed, layout);
    for (int i : {0, 1}) {
      for (float value : read.values[i]) EXPECT_TRUE(std::isnan(value));
    }
    EXPECT_THAT(read.values[2], ::testing::Each(0.0f));
    EXPECT_EQ(read.values[3][2], 3.0f);
    const ConversionLoss loss = ReadLoss(packed.loss.data_ptr<double>());
    EXPECT_DOUBLE_EQ(loss.value_squares, 14);
    EXPECT_LT(loss.error_squares, 0.01);
  }
}

TEST(PackRowsTest, TopKKeepsTheLargestMagnitudesInDescendingOrder) {
  const std::vector<std::vector<float>> rows = Random(9, 40, 1.0f);
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kInt8}) {
    const RowLayout layout{dtype, 40, 5};
    const Read read = ReadBack(PackRows(Rows(rows), layout), layout);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<uint32_t> order(40);
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(),
                [&](uint32_t a, uint32_t b) { return std::abs(rows[i][a]) > std::abs(rows[i][b]); });
      order.resize(5);
      EXPECT_EQ(read.indices[i], order);
      for (size_t j = 0; j < 5; ++j) {
        const float value = rows[i][order[j]];
        EXPECT_NEAR(read.values[i][j], value, dtype == Dtype::kFloat32 ? 0 : 0.02 * std::abs(value) + 0.02);
      }
    }
  }
}

TEST(PackRowsTest, NanIsLargerThanAnyNumber) {
  const RowLayout layout{Dtype::kFloat32, 4, 2};
  const Read read = ReadBack(PackRows(Rows({{1, -9, kNan, 3}}), layout), layout);
  EXPECT_EQ(read.indices[0], (std::vector<uint32_t>{2, 1}));
  EXPECT_TRUE(std::isnan(read.values[0][0]));
  EXPECT_EQ(read.values[0][1], -9.0f);
}

// Copies the rows by a Transfer, in two parts. Returns the sum of both losses.
ConversionLoss Copy(const at::Tensor& value, const RowLayout& layout, std::vector<uint8_t>* bytes) {
  const auto transfer = *MakeTransfer("cpu");
  std::vector<int64_t> index(value.size(0));
  std::iota(index.begin(), index.end(), 0);
  const auto staged = *transfer->Stage(value, **transfer->MakeIndex(index), value.size(0), layout);
  bytes->resize(value.size(0) * layout.bytes());
  EXPECT_TRUE(transfer->Copy(*staged, 0, 1, bytes->data()).ok());
  ConversionLoss loss = staged->TakeLoss();
  EXPECT_TRUE(transfer->Copy(*staged, 1, value.size(0) - 1, bytes->data() + layout.bytes()).ok());
  const ConversionLoss rest = staged->TakeLoss();
  loss.error_squares += rest.error_squares;
  loss.value_squares += rest.value_squares;
  loss.overflows += rest.overflows;
  loss.truncated_rows += rest.truncated_rows;
  EXPECT_EQ(staged->TakeLoss().overflows, 0);
  return loss;
}

TEST(PackRowsTest, ATransferCopiesPackedRowsAndTellsTheirLossOnce) {
  const at::Tensor value = Rows(Random(6, 10, 2.0f));
  for (const RowLayout& layout : {RowLayout{Dtype::kInt8, 10}, RowLayout{Dtype::kFloat32, 10, 3}}) {
    const PackedRows whole = PackRows(value, layout);
    std::vector<uint8_t> bytes;
    const ConversionLoss loss = Copy(value, layout, &bytes);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), whole.bytes.data_ptr<uint8_t>()));
    if (whole.loss.defined()) {
      EXPECT_NEAR(loss.value_squares, ReadLoss(whole.loss.data_ptr<double>()).value_squares, 1e-9);
    }
  }
}

TEST(PackRowsTest, RowsWithMoreEntriesThanAreKeptAreCounted) {
  const at::Tensor value = Rows({{0, 0, 1, 0}, {1, 0, -2, 0}, {3, 4, 5, 0}, {1, 2, 3, 4}});
  std::vector<uint8_t> bytes;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kInt8}) {
    EXPECT_EQ(Copy(value, {dtype, 4, 2}, &bytes).truncated_rows, 2);
    EXPECT_EQ(Copy(value, {dtype, 4, 4}, &bytes).truncated_rows, 0);
    EXPECT_EQ(Copy(value, {dtype, 4}, &bytes).truncated_rows, 0);
  }
}

TEST(PackRowsTest, ValuesTooLargeForFloat16AreCounted) {
  // 65519 is still rounded to the largest number, 65504.
  const at::Tensor value = Rows({{1, 65504, 65519, 70000}, {-1e30f, kInf, kNan, 65520}});
  std::vector<uint8_t> bytes;
  EXPECT_EQ(Copy(value, {Dtype::kFloat16, 4}, &bytes).overflows, 3);
  EXPECT_EQ(Copy(value, {Dtype::kBFloat16, 4}, &bytes).overflows, 0);
  EXPECT_EQ(Copy(value, {Dtype::kFloat16, 4, 2}, &bytes).overflows, 1);  // 70000; the NaN row keeps NaN and infinity
}

}  // namespace
}  // namespace hookline
