#include "server/engine/row_statistics.h"

#include <cmath>
#include <limits>

#include "server/base/row_values.h"

namespace hookline {
namespace {

struct RowSums {
  double sum = 0;
  double squares = 0;
  int64_t finite_values = 0;
  int64_t nan_count = 0;
  int64_t infinity_count = 0;
};

// Independent partial sums, so that the compiler may use vector instructions without reordering any of them.
constexpr int kLanes = 16;

template <typename Type>
RowSums SumRow(const uint8_t* row, int64_t width) {
  float sums[kLanes] = {};
  float squares[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = Type::Read(row + (j + lane) * Type::kBytes);
      sums[lane] += value;
      squares[lane] += value * value;
    }
  }
  RowSums total;
  for (int lane = 0; lane < kLanes; ++lane) {
    total.sum += sums[lane];
    total.squares += squares[lane];
  }
  for (; j < width; ++j) {
    const double value = Type::Read(row + j * Type::kBytes);
    total.sum += value;
    total.squares += value * value;
  }
  total.finite_values = width;
  if (std::isfinite(total.sum) && std::isfinite(total.squares)) return total;

  // A value is not finite, or finite squares overflowed binary32, so go value by value.
  total = {};
  for (j = 0; j < width; ++j) {
    const double value = Type::Read(row + j * Type::kBytes);
    if (std::isnan(value)) {
      ++total.nan_count;
    } else if (std::isinf(value)) {
      ++total.infinity_count;
    } else {
      ++total.finite_values;
      total.sum += value;
      total.squares += value * value;
    }
  }
  return total;
}

// Sums over a row that begins with a scale: its numbers times the scale, all NaN if that is.
template <typename Type>
RowSums SumScaledRow(const RowLayout& layout, const uint8_t* row) {
  const double scale = RowScale(layout, row);
  RowSums total;
  if (!std::isfinite(scale)) {
    total.nan_count = layout.numbers();
    return total;
  }
  total = SumRow<Type>(row + layout.numbers_offset(), layout.numbers());
  total.sum *= scale;
  total.squares *= scale * scale;
  return total;
}

}  // namespace

void RowStatistics::Add(const uint8_t* data, int64_t rows, const RowLayout& layout) {
  rows_ += rows;
  WithReader(layout.dtype, [&](auto reader) {
    using Reader = decltype(reader);
    for (int64_t i = 0; i < rows; ++i, data += layout.bytes()) {
      const RowSums row = layout.scale_bytes() == 0 ? SumRow<Reader>(data + layout.numbers_offset(), layout.numbers())
                                                    : SumScaledRow<Reader>(layout, data);
      norms_ += std::sqrt(row.squares);
      sum_ += row.sum;
      squares_ += row.squares;
      finite_values_ += row.finite_values;
      nan_count_ += row.nan_count;
      infinity_count_ += row.infinity_count;
    }
  });
}

void RowStatistics::Add(const ConversionLoss& loss) {
  loss_.error_squares += loss.error_squares;
  loss_.value_squares += loss.value_squares;
  loss_.overflows += loss.overflows;
}

void RowStatistics::Add(const RowStatistics& other) {
  rows_ += other.rows_;
  finite_values_ += other.finite_values_;
  norms_ += other.norms_;
  sum_ += other.sum_;
  squares_ += other.squares_;
  nan_count_ += other.nan_count_;
  infinity_count_ += other.infinity_count_;
  Add(other.loss_);
}

void RowStatistics::Summarize(HookPointSummary* summary) const {
  summary->statistics_rows = rows_;
  if (rows_ > 0 && finite_values_ == 0) {
    // A mean of 0 would look like one that was measured.
    summary->mean_row_norm = summary->mean = summary->rms = std::numeric_limits<double>::quiet_NaN();
  } else if (rows_ > 0) {
    summary->mean_row_norm = norms_ / static_cast<double>(rows_);
  }
  if (finite_values_ > 0) {
    summary->mean = sum_ / static_cast<double>(finite_values_);
    summary->rms = std::sqrt(squares_ / static_cast<double>(finite_values_));
  }
  summary->nan_count = nan_count_;
  summary->infinity_count = infinity_count_;
  summary->overflow_count = loss_.overflows;
  if (loss_.value_squares > 0) summary->conversion_error = std::sqrt(loss_.error_squares / loss_.value_squares);
}

}  // namespace hookline
