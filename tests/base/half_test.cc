#include "server/base/half.h"

#include <cmath>
#include <cstdint>

#include "gtest/gtest.h"

namespace hookline {
namespace {

TEST(HalfTest, EveryFloat16IsExact) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 0x1f);
    const int fraction = static_cast<int>(bits & 0x3ff);
    const float value = FloatFromFloat16(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    if (exponent == 31) {
      EXPECT_TRUE(fraction == 0 ? std::isinf(value) : std::isnan(value)) << bits;
    } else {
      const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(std::abs(value), magnitude) << bits;
    }
  }
}

TEST(HalfTest, BFloat16IsTheUpperHalfOfAFloat) {
  EXPECT_EQ(FloatFromBFloat16(0x3f80), 1.0F);
  EXPECT_EQ(FloatFromBFloat16(0xc000), -2.0F);
  EXPECT_TRUE(std::isnan(FloatFromBFloat16(0x7fc0)));
}

}  // namespace
}  // namespace hookline
