// The 2-byte floating types as float32, which holds each of their values exactly. These are compiled into their callers
// even where a caller is compiled for another processor than the file (row_statistics.cc).
#ifndef HOOKLINE_SERVER_BASE_HALF_H_
#define HOOKLINE_SERVER_BASE_HALF_H_

#include <cstdint>
#include <cstring>

namespace hookline {

inline __attribute__((always_inline)) float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __attribute__((always_inline)) float FloatFromBFloat16(uint16_t bits) {
  return FloatFromBits(static_cast<uint32_t>(bits) << 16);
}

// IEEE 754 binary16 has its exponent biased by 15 instead of 127: moved into binary32's place, a product with 2^112
// puts it right, for subnormal values too; infinity and NaN need the largest exponent. That is chosen by bits and not
// by a condition, which compilers do not turn into vector instructions.
inline __attribute__((always_inline)) float FloatFromFloat16(uint16_t bits) {
  const uint32_t wide = bits;
  const uint32_t magnitude = (wide & 0x7fff) << 13;
  const float finite = FloatFromBits(magnitude) * FloatFromBits(uint32_t{127 + 112} << 23);
  uint32_t value;
  std::memcpy(&value, &finite, sizeof value);
  const uint32_t special = uint32_t{0} - static_cast<uint32_t>((wide & 0x7c00) == 0x7c00);
  value = (value & ~special) | ((magnitude | 0x7f800000) & special);
  return FloatFromBits(value | (wide & 0x8000) << 16);
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_HALF_H_
