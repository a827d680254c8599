#include "server/engine/row_statistics.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace hookline {
namespace {

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct Float32 {
  static constexpr int kBytes = 4;
  static float Read(const uint8_t* p) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
};

struct BFloat16 {
  static constexpr int kBytes = 2;
  static float Read(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return FromBits(static_cast<uint32_t>(bits) << 16);
  }
};

// Binary16 has its exponent biased by 15 instead of 127: moved into binary32's place, a product with 2^112 puts it
// right, for subnormal values too; infinity and NaN need the largest exponent.
struct Float16 {
  static constexpr int kBytes = 2;
  static float Read(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
    const float value = (bits & 0x7c00) == 0x7c00 ? FromBits(magnitude | 0x7f800000)
                                                  : FromBits(magnitude) * FromBits(uint32_t{127 + 112} << 23);
    return (bits & 0x8000) != 0 ? -value : value;
  }
};

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

template <typename Type, typename Sink>
void SumRows(const uint8_t* data, int64_t rows, int64_t width, Sink&& sink) {
  for (int64_t i = 0; i < rows; ++i) sink(SumRow<Type>(data + i * width * Type::kBytes, width));
}

}  // namespace

void RowStatistics::Add(const uint8_t* data, int64_t rows, int64_t width, Dtype dtype) {
  const auto sink = [this](const RowSums& row) {
    norms_ += std::sqrt(row.squares);
    sum_ += row.sum;
    squares_ += row.squares;
    finite_values_ += row.finite_values;
    nan_count_ += row.nan_count;
    infinity_count_ += row.infinity_count;
  };
  rows_ += rows;
  switch (dtype) {
    case Dtype::kFloat32:
      return SumRows<Float32>(data, rows, width, sink);
    case Dtype::kBFloat16:
      return SumRows<BFloat16>(data, rows, width, sink);
    case Dtype::kFloat16:
      return SumRows<Float16>(data, rows, width, sink);
  }
}

void RowStatistics::Add(const RowStatistics& other) {
  rows_ += other.rows_;
  finite_values_ += other.finite_values_;
  norms_ += other.norms_;
  sum_ += other.sum_;
  squares_ += other.squares_;
  nan_count_ += other.nan_count_;
  infinity_count_ += other.infinity_count_;
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
}

}  // namespace hookline
