#include "server/model/families/mxfp4.h"

#include <cmath>
#include <vector>

#include "absl/strings/match.h"

namespace hookline {
namespace {

// (16): what half a byte stands for.
at::Tensor HalfByteValues() {
  const std::vector<float> magnitudes = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const at::Tensor values = at::tensor(magnitudes, at::kFloat);
  return at::cat({values, values.neg()});
}

// (256): what a scale stands for. Exact, as a power computed by a vector library need not be; 255 means no number.
at::Tensor ScaleValues() {
  std::vector<float> values(256, std::nanf(""));
  for (int scale = 0; scale < 255; ++scale) values[static_cast<size_t>(scale)] = std::ldexp(1.0F, scale - 127);
  return at::tensor(values, at::kFloat);
}

}  // namespace

at::Tensor DequantizeMxfp4(const at::Tensor& blocks, const at::Tensor& scales, at::ScalarType dtype) {
  const int64_t experts = blocks.size(0), rows = blocks.size(1), groups = blocks.size(2);
  const at::Tensor half_bytes = HalfByteValues(), powers = ScaleValues();
  at::Tensor values = at::empty({experts, rows, groups * kMxfp4Group}, dtype);
  const auto look_up = [](const at::Tensor& table, const at::Tensor& index) {
    return at::index_select(table, 0, index.reshape(-1).to(at::kInt)).view(index.sizes());
  };
  // One expert at a time, so that what is needed on the way stays small.
  for (int64_t e = 0; e < experts; ++e) {
    const at::Tensor low = look_up(half_bytes, blocks[e].bitwise_and(15));
    const at::Tensor high = look_up(half_bytes, blocks[e].bitwise_right_shift(4));
    const at::Tensor scale = look_up(powers, scales[e]).unsqueeze(-1).unsqueeze(-1);
    values[e].copy_((at::stack({low, high}, -1) * scale).view({rows, groups * kMxfp4Group}));
  }
  return values;
}

int64_t Mxfp4Growth(const StateDict& weights, at::ScalarType dtype) {
  int64_t growth = 0;
  for (const auto& [name, tensor] : weights.tensors) {
    if (absl::EndsWith(name, "_blocks")) {
      growth += tensor.numel() * (2 * static_cast<int64_t>(c10::elementSize(dtype)) - 1);
    } else if (absl::EndsWith(name, "_scales")) {
      growth -= tensor.numel();
    }
  }
  return growth;
}

}  // namespace hookline
