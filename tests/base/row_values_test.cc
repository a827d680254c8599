#include "server/base/row_values.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;

// Decodes E4M3 by the definition in OCP's specification.
float SlowFloat8(int code) {
  const int exponent = (code >> 3) & 15, fraction = code & 7;
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  if (exponent == 15 && fraction == 7) return NAN;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction) / 8, -6);
  return sign * std::ldexp(1 + static_cast<float>(fraction) / 8, exponent - 7);
}

TEST(RowValuesTest, EveryFloat8IsReadAsItIs) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    const float value = Float8E4M3Reader::Read(&byte);
    if (std::isnan(SlowFloat8(code))) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, SlowFloat8(code)) << code;
      EXPECT_EQ(std::signbit(value), (code & 0x80) != 0) << code;
    }
  }
}

TEST(RowValuesTest, ARowIsItsScaleItsIndicesAndItsNumbers) {
  const RowLayout layout{Dtype::kInt8, /*width=*/100, /*top_k=*/3};
  EXPECT_EQ(layout.bytes(), 4 + 12 + 3);
  EXPECT_FALSE(layout.is_plain());
  std::vector<uint8_t> row(layout.bytes());
  const float scale = 0.5f;
  const uint32_t indices[] = {99, 0, 7};
  std::memcpy(row.data(), &scale, 4);
  std::memcpy(row.data() + 4, indices, 12);
  row[16] = 127;
  row[17] = static_cast<uint8_t>(-127);
  row[18] = 1;
  std::vector<float> values(3);
  std::vector<uint32_t> read(3);
  ReadValues(layout, row.data(), values.data());
  ReadIndices(layout, row.data(), read.data());
  EXPECT_THAT(values, ElementsAre(63.5f, -63.5f, 0.5f));
  EXPECT_THAT(read, ElementsAre(99, 0, 7));
}

TEST(RowValuesTest, PlainRowsAreTheirValues) {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    const RowLayout layout{dtype, 12};
    EXPECT_TRUE(layout.is_plain());
    EXPECT_EQ(layout.bytes(), 12 * DtypeBytes(dtype));
  }
}

}  // namespace
}  // namespace hookline
