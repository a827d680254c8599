// Reads the numbers of rows, whatever their type.
#ifndef HOOKLINE_SERVER_BASE_ROW_VALUES_H_
#define HOOKLINE_SERVER_BASE_ROW_VALUES_H_

#include <cstdint>
#include <cstring>

#include "server/base/half.h"
#include "server/base/row_layout.h"

namespace hookline {

// Each Dtype has one reader: a number takes `kBytes`, and `Read` returns the number at `p` as a float, exactly and
// without its row's scale.
struct Float32Reader {
  static constexpr int kBytes = 4;
  static float Read(const uint8_t* p) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
};

struct BFloat16Reader {
  static constexpr int kBytes = 2;
  static float Read(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return FloatFromBFloat16(bits);
  }
};

struct Float16Reader {
  static constexpr int kBytes = 2;
  static float Read(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return FloatFromFloat16(bits);
  }
};

// OCP's E4M3: 1 sign bit, 4 exponent bits biased by 7, 3 fraction bits, no infinity, and NaN where all bits but the
// sign are set.
struct Float8E4M3Reader {
  static constexpr int kBytes = 1;
  static float Read(const uint8_t* p) {
    const uint32_t magnitude = static_cast<uint32_t>(*p & 0x7f) << 20;
    const float value = (*p & 0x7f) == 0x7f ? FloatFromBits(0x7fc00000)
                                            : FloatFromBits(magnitude) * FloatFromBits(uint32_t{127 + 120} << 23);
    return (*p & 0x80) != 0 ? -value : value;
  }
};

struct Int8Reader {
  static constexpr int kBytes = 1;
  static float Read(const uint8_t* p) { return static_cast<float>(static_cast<int8_t>(*p)); }
};

// Calls `visit` with the reader of `dtype`.
template <typename Visit>
void WithReader(Dtype dtype, Visit&& visit) {
  switch (dtype) {
    case Dtype::kFloat32:
      return visit(Float32Reader());
    case Dtype::kBFloat16:
      return visit(BFloat16Reader());
    case Dtype::kFloat16:
      return visit(Float16Reader());
    case Dtype::kFloat8E4M3:
      return visit(Float8E4M3Reader());
    case Dtype::kInt8:
      return visit(Int8Reader());
  }
}

// Returns the row's scale, or 1 if the layout has none.
float RowScale(const RowLayout& layout, const uint8_t* row);

// Writes the row's layout.numbers() entries, scaled, to `values`.
void ReadValues(const RowLayout& layout, const uint8_t* row, float* values);

// Writes the layout.top_k indices of the row to `indices`.
void ReadIndices(const RowLayout& layout, const uint8_t* row, uint32_t* indices);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_ROW_VALUES_H_
