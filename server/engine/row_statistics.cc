#include "server/engine/row_statistics.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <limits>

#include "server/base/half.h"
#include "server/base/row_values.h"
#include "server/engine/for_each_processor.h"

namespace hookline {
namespace {

struct Float32 {
  using Bits = uint32_t;
  static HOOKLINE_INLINE float Value(Bits bits) { return FloatFromBits(bits); }
};

struct BFloat16 {
  using Bits = uint16_t;
  static HOOKLINE_INLINE float Value(Bits bits) { return FloatFromBFloat16(bits); }
};

struct Float16 {
  using Bits = uint16_t;
  static HOOKLINE_INLINE float Value(Bits bits) { return FloatFromFloat16(bits); }
};

struct Float8E4M3 {
  using Bits = uint8_t;
  static float Value(Bits bits) { return Float8E4M3Reader::Read(&bits); }
};

struct Int8 {
  using Bits = uint8_t;
  static float Value(Bits bits) { return Int8Reader::Read(&bits); }
};

template <typename Type>
HOOKLINE_INLINE float Read(const uint8_t* row, int64_t j) {
  typename Type::Bits bits;
  std::memcpy(&bits, row + j * static_cast<int64_t>(sizeof(bits)), sizeof(bits));
  return Type::Value(bits);
}

struct RowSums {
  double sum = 0;
  double squares = 0;
  int64_t finite_values = 0;
  int64_t nan_count = 0;
  int64_t infinity_count = 0;
};

// The number of partial sums. They are independent, so that the compiler can use vector instructions without reordering
// any of them. They fill four vectors of AVX2, which hide the latency of an addition.
constexpr int kLanes = 32;

struct Lanes {
  float sums[kLanes] = {};
  float squares[kLanes] = {};
};

// Adds the row's whole blocks of kLanes values. Returns how many values they hold.
template <typename Type>
HOOKLINE_INLINE int64_t AddBlocks(const uint8_t* row, int64_t width, Lanes& lanes) {
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    typename Type::Bits bits[kLanes];
    std::memcpy(bits, row + j * static_cast<int64_t>(sizeof(bits[0])), sizeof(bits));
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = Type::Value(bits[lane]);
      lanes.sums[lane] += value;
      lanes.squares[lane] += value * value;
    }
  }
  return j;
}

#ifdef __x86_64__
// Does the same for binary16, with the processor's own conversion.
__attribute__((target("avx,f16c"))) int64_t AddFloat16Blocks(const uint8_t* row, int64_t width, Lanes& lanes) {
  constexpr int64_t kVectors = kLanes / 8;
  __m256 sums[kVectors], squares[kVectors];
  for (int64_t k = 0; k < kVectors; ++k) sums[k] = squares[k] = _mm256_setzero_ps();
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    for (int64_t k = 0; k < kVectors; ++k) {
      const auto* const bits = reinterpret_cast<const __m128i*>(row + 2 * j + 16 * k);
      const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128(bits));
      sums[k] = _mm256_add_ps(sums[k], values);
      squares[k] = _mm256_add_ps(squares[k], _mm256_mul_ps(values, values));
    }
  }
  for (int64_t k = 0; k < kVectors; ++k) {
    _mm256_storeu_ps(lanes.sums + 8 * k, sums[k]);
    _mm256_storeu_ps(lanes.squares + 8 * k, squares[k]);
  }
  return j;
}
#endif

// Completes the sums over a row; `lanes` holds those over its first `j` values.
template <typename Type>
HOOKLINE_INLINE RowSums Finish(const uint8_t* row, int64_t width, int64_t j, const Lanes& lanes) {
  RowSums total;
  for (int lane = 0; lane < kLanes; ++lane) {
    total.sum += lanes.sums[lane];
    total.squares += lanes.squares[lane];
  }
  for (; j < width; ++j) {
    const double value = Read<Type>(row, j);
    total.sum += value;
    total.squares += value * value;
  }
  total.finite_values = width;
  if (std::isfinite(total.sum) && std::isfinite(total.squares)) return total;

  // A value is not finite, or finite squares overflowed binary32, so go value by value.
  total = {};
  for (j = 0; j < width; ++j) {
    const double value = Read<Type>(row, j);
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

template <typename Type>
HOOKLINE_INLINE RowSums SumRow(const uint8_t* row, int64_t width) {
  Lanes lanes;
  const int64_t j = AddBlocks<Type>(row, width, lanes);
  return Finish<Type>(row, width, j, lanes);
}

HOOKLINE_FOR_EACH_PROCESSOR RowSums SumFloat32(const uint8_t* row, int64_t width) {
  return SumRow<Float32>(row, width);
}

HOOKLINE_FOR_EACH_PROCESSOR RowSums SumBFloat16(const uint8_t* row, int64_t width) {
  return SumRow<BFloat16>(row, width);
}

RowSums SumFloat16(const uint8_t* row, int64_t width) {
#ifdef __x86_64__
  static const bool has_instruction = __builtin_cpu_supports("avx2");  // every processor with AVX2 has F16C
  if (has_instruction) {
    Lanes lanes;
    const int64_t j = AddFloat16Blocks(row, width, lanes);
    return Finish<Float16>(row, width, j, lanes);
  }
#endif
  return SumRow<Float16>(row, width);
}

// Returns the sums over a row that begins with a scale: over its numbers times the scale, or all NaN if the scale is
// not finite.
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

RowSums Sum(const RowLayout& layout, const uint8_t* row) {
  switch (layout.dtype) {
    case Dtype::kFloat32:
      return SumFloat32(row + layout.numbers_offset(), layout.numbers());
    case Dtype::kBFloat16:
      return SumBFloat16(row + layout.numbers_offset(), layout.numbers());
    case Dtype::kFloat16:
      return SumFloat16(row + layout.numbers_offset(), layout.numbers());
    case Dtype::kFloat8E4M3:
      return SumScaledRow<Float8E4M3>(layout, row);
    case Dtype::kInt8:
      return SumScaledRow<Int8>(layout, row);
  }
  return {};
}

}  // namespace

void RowStatistics::Add(const uint8_t* data, int64_t rows, const RowLayout& layout, const StagedSums& known) {
  for (int64_t i = 0; i < rows; ++i, data += layout.bytes()) {
    if (!known.sums.empty() && std::isfinite(known.sums[i]) && std::isfinite(known.norms[i])) {
      const double norm = known.norms[i];
      norms_ += norm;
      sum_ += known.sums[i];
      squares_ += norm * norm;
      finite_values_ += layout.numbers();
      continue;
    }
    const RowSums row = Sum(layout, data);
    norms_ += std::sqrt(row.squares);
    sum_ += row.sum;
    squares_ += row.squares;
    finite_values_ += row.finite_values;
    nan_count_ += row.nan_count;
    infinity_count_ += row.infinity_count;
  }
  rows_ += rows;
}

void RowStatistics::Add(const ConversionLoss& loss) {
  loss_.error_squares += loss.error_squares;
  loss_.value_squares += loss.value_squares;
  loss_.overflows += loss.overflows;
  loss_.truncated_rows += loss.truncated_rows;
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
  summary->truncated_rows = loss_.truncated_rows;
  if (loss_.value_squares > 0) summary->conversion_error = std::sqrt(loss_.error_squares / loss_.value_squares);
}

}  // namespace hookline
