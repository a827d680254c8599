// The 2-byte floating types as float32, which holds each of their values exactly.
#ifndef HOOKLINE_SERVER_BASE_HALF_H_
#define HOOKLINE_SERVER_BASE_HALF_H_

#include <cstdint>
#include <cstring>

namespace hookline {

inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float FloatFromBFloat16(uint16_t bits) { return FloatFromBits(static_cast<uint32_t>(bits) << 16); }

// IEEE 754 binary16 has its exponent biased by 15 instead of 127: moved into binary32's place, a product with 2^112
// puts it right, for subnormal values too; infinity and NaN need the largest exponent. No branch, so that a loop over
// it can be vectorised.
inline float FloatFromFloat16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  const float value = (bits & 0x7c00) == 0x7c00 ? FloatFromBits(magnitude | 0x7f800000)
                                                : FloatFromBits(magnitude) * FloatFromBits(uint32_t{127 + 112} << 23);
  return (bits & 0x8000) != 0 ? -value : value;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_HALF_H_
