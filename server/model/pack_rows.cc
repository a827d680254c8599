#include "server/model/pack_rows.h"

#include <ATen/ATen.h>

#include <limits>
#include <tuple>
#include <vector>

#include "server/model/scalar_type.h"

namespace hookline {
namespace {

constexpr double kInt8Max = 127;
constexpr double kFloat8E4M3Max = 448;

at::Tensor AsBytes(const at::Tensor& rows) { return rows.contiguous().view(at::kByte); }

// Returns the E4M3 codes of `x`, binary32 within [-448, 448]. LibTorch has a type for them only since 2.1, so this
// works on the bits. The code of a normal number is its upper bits, rounded, with the exponent's bias changed from 127
// to 7; the rounding can carry into the exponent, which is correct. Below 2^-6, codes count multiples of 2^-9.
at::Tensor Float8E4M3Codes(const at::Tensor& x) {
  constexpr int kDroppedBits = 20;
  const at::Tensor bits = x.contiguous().view(at::kInt);
  const at::Tensor sign = bits.lt(0).to(at::kInt).mul(0x80);
  const at::Tensor magnitude = bits.bitwise_and(0x7fffffff);
  const at::Tensor odd = magnitude.bitwise_right_shift(kDroppedBits).bitwise_and(1);
  const at::Tensor normal =
      (magnitude + odd + ((1 << (kDroppedBits - 1)) - 1)).bitwise_right_shift(kDroppedBits) - ((127 - 7) << 3);
  const at::Tensor absolute = x.abs();
  const at::Tensor subnormal = (absolute * 512).round().to(at::kInt);
  return (at::where(absolute < 1.0 / 64, subnormal, normal) + sign).to(at::kByte);
}

// Returns the numbers that the codes encode, binary32.
at::Tensor Float8E4M3Values(const at::Tensor& codes) {
  const at::Tensor wide = codes.to(at::kInt);
  const at::Tensor magnitude = wide.bitwise_and(0x7f);
  const at::Tensor sign = 1 - wide.bitwise_right_shift(7).to(at::kFloat) * 2;
  const at::Tensor subnormal = magnitude.to(at::kFloat) / 512;
  const at::Tensor normal = (magnitude + ((127 - 7) << 3)).bitwise_left_shift(20).view(at::kFloat);
  return sign * at::where(magnitude < 8, subnormal, normal);
}

struct Scaled {
  at::Tensor scale;    // binary32, (rows, 1)
  at::Tensor numbers;  // int8 or codes as uint8, (rows, entries)
  at::Tensor loss;
};

// `values` is binary32, (rows, entries).
Scaled Scale(const at::Tensor& values, Dtype dtype) {
  const bool is_int8 = dtype == Dtype::kInt8;
  const double most = is_int8 ? kInt8Max : kFloat8E4M3Max;
  const at::Tensor largest = values.abs().amax(1, /*keepdim=*/true);
  const at::Tensor finite = at::isfinite(largest);
  const at::Tensor scale =
      at::where(finite, largest / most, at::full_like(largest, std::numeric_limits<double>::quiet_NaN()));
  const at::Tensor divisor = at::where(scale > 0, scale, at::ones_like(scale));
  const at::Tensor kept = at::where(finite, values, at::zeros_like(values));
  // A scale that was rounded down, or is subnormal, lets a quotient exceed the largest number.
  const at::Tensor quotient = (kept / divisor).clamp(-most, most);
  const at::Tensor numbers = is_int8 ? quotient.round().to(at::kChar) : Float8E4M3Codes(quotient);
  const at::Tensor read = (is_int8 ? numbers.to(at::kFloat) : Float8E4M3Values(numbers)) * scale;
  const at::Tensor error = at::where(finite, read - values, at::zeros_like(values)).to(at::kDouble);
  const at::Tensor error_squares = error.square().sum();
  const at::Tensor value_squares = kept.to(at::kDouble).square().sum();
  const at::Tensor none = at::zeros_like(error_squares);
  return {scale, numbers, at::stack({error_squares, value_squares, none, none})};
}

}  // namespace

PackedRows PackRows(const at::Tensor& rows, const RowLayout& layout) {
  // Not every device and release of LibTorch finds the largest of 16-bit numbers, so everything is
  // computed in binary32.
  at::Tensor values = rows.to(at::kFloat);
  std::vector<at::Tensor> parts;
  PackedRows packed;
  at::Tensor truncated;
  if (layout.top_k > 0) {
    truncated = values.ne(0).sum(1).gt(layout.top_k).sum().to(at::kDouble);
    const at::Tensor chosen =
        std::get<1>(values.abs().topk(layout.top_k, /*dim=*/1, /*largest=*/true, /*sorted=*/true));
    values = values.gather(1, chosen);
    parts.push_back(AsBytes(chosen.to(at::kInt)));
  }
  if (HasRowScale(layout.dtype)) {
    const Scaled scaled = Scale(values, layout.dtype);
    packed.loss = scaled.loss;
    parts.insert(parts.begin(), AsBytes(scaled.scale));
    parts.push_back(AsBytes(scaled.numbers));
  } else {
    const at::Tensor converted = values.to(ScalarTypeOf(layout.dtype));
    if (layout.dtype == Dtype::kFloat16) packed.loss = OverflowLoss(values, converted);
    parts.push_back(AsBytes(converted));
  }
  if (truncated.defined()) {
    if (!packed.loss.defined()) packed.loss = at::zeros({kLosses}, truncated.options());
    packed.loss.select(0, 3).copy_(truncated);
  }
  packed.bytes = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
  return packed;
}

at::Tensor OverflowLoss(const at::Tensor& from, const at::Tensor& to) {
  const at::Tensor overflows = (at::isinf(to).sum() - at::isinf(from).sum()).to(at::kDouble);
  const at::Tensor none = at::zeros_like(overflows);
  return at::stack({none, none, overflows, none});
}

ConversionLoss ReadLoss(const double* loss) {
  return {loss[0], loss[1], static_cast<int64_t>(loss[2]), static_cast<int64_t>(loss[3])};
}

}  // namespace hookline
