#include "server/model/families/mxfp4.h"

#include <ATen/Dispatch.h>

#include <array>
#include <cmath>
#include <limits>

namespace hookline {
namespace {

// The numbers that half a byte encodes, before its scale.
constexpr std::array<float, 16> kHalfBytes = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -0.5F, -1, -1.5F, -2, -3, -4, -6};

// Returns the number that a scale encodes; 255 encodes NaN.
float Power(uint8_t scale) {
  return scale == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0F, scale - 127);
}

template <typename T>
void DecodeTo(absl::Span<const uint8_t> blocks, const uint8_t* scales, T* values) {
  std::array<T, 16> scaled;
  for (size_t block = 0; block < blocks.size(); block += kMxfp4GroupBytes) {
    const float power = Power(*scales++);
    for (size_t half = 0; half < scaled.size(); ++half) scaled[half] = c10::convert<T>(kHalfBytes[half] * power);
    for (const uint8_t both : blocks.subspan(block, kMxfp4GroupBytes)) {
      *values++ = scaled[both & 15];
      *values++ = scaled[both >> 4];
    }
  }
}

}  // namespace

void DecodeMxfp4(int64_t begin, absl::Span<const uint8_t> blocks, const at::Tensor& scales, at::Tensor& values) {
  const uint8_t* const own_scales = scales.data_ptr<uint8_t>() + begin / kMxfp4GroupBytes;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "DecodeMxfp4",
                                  [&] { DecodeTo(blocks, own_scales, values.data_ptr<scalar_t>() + 2 * begin); });
}

}  // namespace hookline
