#include "server/engine/row_profile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "server/base/row_values.h"
#include "server/engine/for_each_processor.h"

namespace hookline {
namespace {

// Bits of binary32's fraction that a bucket leaves out.
constexpr int kDroppedBits = 23 - 7;
// A row is an outlier if its norm is more than this many medians; those of the attention sinks of language models are,
// by far.
constexpr double kOutlierMedians = 10;

uint32_t BucketOf(double norm) {
  const auto value = static_cast<float>(std::min<double>(norm, std::numeric_limits<float>::max()));
  if (value < std::numeric_limits<float>::min()) return 0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits >> kDroppedBits;
}

double MiddleOf(uint32_t bucket) {
  return bucket == 0 ? 0 : FloatFromBits(bucket << kDroppedBits | uint32_t{1} << (kDroppedBits - 1));
}

// The number of partial sums. They are independent, so that the compiler can use vector instructions without reordering
// any of them.
constexpr int kLanes = 16;

// Returns the sum of the values' squares, which is not finite if a value is not: squares of binary32 numbers cannot
// overflow binary64.
HOOKLINE_FOR_EACH_PROCESSOR double SumOfSquares(const float* values, int64_t count) {
  double lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = values[j + lane];
      lanes[lane] += value * value;
    }
  }
  double total = 0;
  for (double lane : lanes) total += lane;
  for (; j < count; ++j) total += static_cast<double>(values[j]) * values[j];
  return total;
}

HOOKLINE_FOR_EACH_PROCESSOR void AddTo(double* sums, const float* values, int64_t count) {
  for (int64_t j = 0; j < count; ++j) sums[j] += values[j];
}

}  // namespace

void RowProfile::Add(const uint8_t* data, int64_t rows, const RowLayout& layout) {
  std::vector<float> values(layout.numbers());
  std::vector<uint32_t> columns(layout.top_k);
  for (int64_t i = 0; i < rows; ++i, data += layout.bytes()) {
    if (layout.dtype == Dtype::kFloat32 && layout.is_plain()) {
      std::memcpy(values.data(), data, values.size() * sizeof(float));
    } else {
      ReadValues(layout, data, values.data());
    }
    ReadIndices(layout, data, columns.data());
    double squares = SumOfSquares(values.data(), layout.numbers());
    if (!std::isfinite(squares)) {
      squares = AddOneByOne(values, columns);
    } else if (columns.empty()) {
      AddTo(sums_.data(), values.data(), layout.numbers());
    } else {
      for (size_t j = 0; j < values.size(); ++j) sums_[columns[j]] += values[j];
    }
    ++norms_[BucketOf(std::sqrt(squares))];
  }
  rows_ += rows;
}

double RowProfile::AddOneByOne(const std::vector<float>& values, const std::vector<uint32_t>& columns) {
  double squares = 0;
  for (size_t j = 0; j < values.size(); ++j) {
    const size_t column = columns.empty() ? j : columns[j];
    const double value = values[j];
    if (std::isfinite(value)) {
      sums_[column] += value;
      squares += value * value;
    } else {
      ++left_out_[column];
    }
  }
  return squares;
}

double RowProfile::Quantile(double share) const {
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(rows_)));
  int64_t seen = 0;
  for (const auto& [bucket, rows] : norms_) {
    seen += rows;
    if (seen >= rank) return MiddleOf(bucket);
  }
  return 0;
}

void RowProfile::Summarize(HookPointSummary* summary) const {
  summary->mean_vector.resize(sums_.size());
  for (size_t j = 0; j < sums_.size(); ++j) {
    const int64_t count = rows_ - left_out_[j];
    summary->mean_vector[j] =
        count > 0 ? static_cast<float>(sums_[j] / static_cast<double>(count)) : std::numeric_limits<float>::quiet_NaN();
  }
  if (rows_ == 0) return;
  summary->row_norm_p1 = Quantile(0.01);
  summary->row_norm_p50 = Quantile(0.5);
  summary->row_norm_p99 = Quantile(0.99);
  int64_t far = 0;
  for (const auto& [bucket, rows] : norms_) {
    if (MiddleOf(bucket) > kOutlierMedians * summary->row_norm_p50) far += rows;
  }
  summary->outlier_row_share = static_cast<double>(far) / static_cast<double>(rows_);
}

}  // namespace hookline
