#include "server/model/layers.h"

#include <tuple>
#include <utility>

#include "server/model/torch_compat.h"

namespace hookline {

at::Tensor Linear(const at::Tensor& x, const LinearWeights& weights) {
  return weights.bias.defined() ? at::addmm(weights.bias, x, weights.weight) : at::mm(x, weights.weight);
}

namespace {

// `wide` is the normalized value in float32. The results are in `dtype`.
Normed WithWeights(const at::Tensor& wide, at::ScalarType dtype, const NormWeights& weights) {
  const bool narrow = dtype != at::kFloat;
  Normed result;
  result.normalized = narrow ? wide.to(dtype) : wide;
  result.out = result.normalized;
  if (!weights.weight.defined()) return result;
  if (weights.weight.scalar_type() == at::kFloat) {
    at::Tensor product =
        weights.bias.defined() ? at::addcmul(weights.bias, wide, weights.weight) : wide * weights.weight;
    result.out = narrow ? product.to(dtype) : product;
  } else {
    result.out = result.normalized * weights.weight;
  }
  return result;
}

// mean(x^2) + epsilon, (rows, 1) in float32. It uses the L2 norm, which is one pass over x without a temporary.
at::Tensor MeanSquare(const at::Tensor& x, const NormConfig& config) {
  const at::Tensor norm = at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true, at::kFloat);
  return norm.square_().div_(static_cast<double>(x.size(-1))).add_(config.epsilon);
}

// Returns the normalized rows, their means and 1 / their scales, all in float32.
std::tuple<at::Tensor, at::Tensor, at::Tensor> LayerNorm(const at::Tensor& x, const NormConfig& config) {
  return at::native_layer_norm(x.to(at::kFloat), {x.size(-1)}, {}, {}, config.epsilon);
}

}  // namespace

Normed Norm(const at::Tensor& x, const NormConfig& config, const NormWeights& weights) {
  const at::Tensor wide =
      config.kind == NormConfig::Kind::kRms ? x * MeanSquare(x, config).rsqrt_() : std::get<0>(LayerNorm(x, config));
  return WithWeights(wide, x.scalar_type(), weights);
}

at::Tensor NormScale(const at::Tensor& x, const NormConfig& config) {
  if (config.kind == NormConfig::Kind::kRms) return MeanSquare(x, config).sqrt_();
  return std::get<2>(LayerNorm(x, config)).reciprocal_();
}

Normed NormBy(const at::Tensor& scale, const at::Tensor& x, const NormConfig& config, const NormWeights& weights) {
  at::Tensor dividend = x.to(at::kFloat);
  if (config.kind == NormConfig::Kind::kLayer) dividend = dividend - dividend.mean(-1, /*keepdim=*/true);
  return WithWeights(dividend / scale, x.scalar_type(), weights);
}

at::Tensor Weighted(const at::Tensor& normalized, const NormWeights& weights) {
  if (!weights.weight.defined()) return normalized;
  if (weights.weight.scalar_type() != at::kFloat) return normalized * weights.weight;
  const at::Tensor wide = normalized.to(at::kFloat);
  const at::Tensor product =
      weights.bias.defined() ? at::addcmul(weights.bias, wide, weights.weight) : wide * weights.weight;
  return product.to(normalized.scalar_type());
}

OutputNorm::OutputNorm(const NormConfig& config, NormWeights weights, at::ScalarType dtype)
    : config_(config), weights_(std::move(weights)) {
  if (!weights_.weight.defined()) return;
  const at::Tensor narrow = weights_.weight.to(dtype);
  // A layer norm's weights have the model's dtype in the reference too. Those of an RMS norm can be 1 + w in float32.
  const bool may_narrow =
      config.kind == NormConfig::Kind::kLayer || narrow.to(weights_.weight.scalar_type()).equal(weights_.weight);
  if (!may_narrow) return;
  narrow_.weight = narrow;
  if (weights_.bias.defined()) narrow_.bias = weights_.bias.to(dtype);
}

at::Tensor OutputNorm::operator()(const at::Tensor& x) const {
  const auto optional = [](const at::Tensor& tensor) {
    return tensor.defined() ? c10::optional<at::Tensor>(tensor) : c10::nullopt;
  };
  if (config_.kind == NormConfig::Kind::kLayer) {
    // Weights of the model's dtype multiply the rounded result, which the kernel does not do, and the CPU's kernel does
    // not support every narrow type.
    const bool rounds_first = weights_.weight.defined() && weights_.weight.scalar_type() != at::kFloat;
    if (rounds_first || (x.is_cpu() && x.scalar_type() != at::kFloat)) return Norm(x, config_, weights_).out;
    return std::get<0>(
        at::native_layer_norm(x, {x.size(-1)}, optional(narrow_.weight), optional(narrow_.bias), config_.epsilon));
  }
  if (!kHasFusedRmsNorm || x.is_cpu() || weights_.bias.defined()) return Norm(x, config_, weights_).out;
  at::Tensor normalized = RmsNorm(x, narrow_.weight, config_.epsilon);
  if (narrow_.weight.defined() || !weights_.weight.defined()) return normalized;
  at::Tensor out = at::empty_like(normalized);
  return at::mul_out(out, normalized, weights_.weight);
}

namespace {

// x (1 + tanh(u)) / 2 equals x sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3). On a CPU, LibTorch computes the
// sigmoid in half the time, with the same precision.
at::Tensor GeluTanh(const at::Tensor& x) {
  constexpr double kTwiceRoot = 1.5957691216057308;  // 2 sqrt(2 / pi)
  return at::mul(x, x).mul_(kTwiceRoot * 0.044715).add_(kTwiceRoot).mul_(x).sigmoid_().mul_(x);
}

}  // namespace

at::Tensor Activate(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kReluSquared:
      return at::relu(x).square_();
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return x.is_cpu() && x.scalar_type() == at::kFloat ? GeluTanh(x) : at::gelu(x, "tanh");
    case Activation::kQuickGelu:
      return at::sigmoid(x * 1.702).mul_(x);
  }
  return x;
}

}  // namespace hookline
