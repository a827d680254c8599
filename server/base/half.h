// Converts the 2-byte floating types to float32, which holds each of their values exactly. The functions are always
// inlined, also into callers that are compiled for another processor than their file (row_statistics.cc).
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

// IEEE 754 binary16 biases its exponent by 15 instead of 127. Moving the bits into binary32's place and multiplying by
// 2^112 corrects that, for subnormal values too; infinity and NaN need the largest exponent. A bit mask selects the
// case, because compilers do not turn a condition into vector instructions.
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
