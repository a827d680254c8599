#include "server/service/values.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace hookline {
namespace {

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE 754 binary16: 1 sign bit, 5 exponent bits biased by 15, 10 fraction bits. Every one is exact in binary32.
float FromFloat16(uint16_t half) {
  const int exponent = (half >> 10) & 0x1f;
  const int fraction = half & 0x3ff;
  float magnitude;
  if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else if (exponent == 31) {
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else {
    magnitude = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

}  // namespace

void AppendAsFloats(absl::string_view data, Dtype dtype, google::protobuf::RepeatedField<float>* values) {
  const auto count = static_cast<int>(data.size() / DtypeBytes(dtype));
  const int first = values->size();
  values->Resize(first + count, 0);
  float* out = values->mutable_data() + first;
  if (dtype == Dtype::kFloat32) {
    std::memcpy(out, data.data(), count * sizeof(float));
    return;
  }
  for (int i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data.data() + i * sizeof bits, sizeof bits);
    out[i] = dtype == Dtype::kBFloat16 ? FromBits(static_cast<uint32_t>(bits) << 16) : FromFloat16(bits);
  }
}

}  // namespace hookline
