#include "server/model/layers.h"

#include <tuple>
#include <utility>

#include "server/model/torch_compat.h"

namespace hookline {

at::Tensor Linear(const at::Tensor& x, const LinearWeights& weights) {
  return weights.bias.defined() ? at::addmm(weights.bias, x, weights.weight) : at::mm(x, weights.weight);
}

Normed Norm(const at::Tensor& x, const NormConfig& config, const NormWeights& weights) {
  const double width = static_cast<double>(x.size(-1));
  const bool narrow = x.scalar_type() != at::kFloat;
  at::Tensor wide;  // normalized, in float32
  if (config.kind == NormConfig::Kind::kRms) {
    // mean(x^2) from the L2 norm, which is one pass over x without a temporary.
    const at::Tensor norm = at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true, at::kFloat);
    wide = x * norm.square_().div_(width).add_(config.epsilon).rsqrt_();
  } else {
    const at::Tensor input = narrow ? x.to(at::kFloat) : x;
    wide = std::get<0>(at::native_layer_norm(input, {input.size(-1)}, {}, {}, config.epsilon));
  }
  Normed result;
  result.normalized = narrow ? wide.to(x.scalar_type()) : wide;
  result.out = result.normalized;
  if (!weights.weight.defined()) return result;
  if (weights.weight.scalar_type() == at::kFloat) {
    at::Tensor product =
        weights.bias.defined() ? at::addcmul(weights.bias, wide, weights.weight) : wide * weights.weight;
    result.out = narrow ? product.to(x.scalar_type()) : product;
  } else {
    result.out = result.normalized * weights.weight;
  }
  return result;
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
  // A layer norm's weights are the model's dtype's in the reference too. Of an RMS norm they may be 1 + w in float32.
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
    // Weights of the model's dtype are multiplied after the result was rounded, which the kernel does not do; and the
    // CPU's kernel does not know every narrow type.
    const bool rounds_first = weights_.weight.defined() && weights_.weight.scalar_type() != at::kFloat;
    if (rounds_first || (x.is_cpu() && x.scalar_type() != at::kFloat)) return Norm(x, config_, weights_).out;
    return std::get<0>(
        at::native_layer_norm(x, {x.size(-1)}, optional(narrow_.weight), optional(narrow_.bias), config_.epsilon));
  }
  if (!kHasFusedRmsNorm || x.is_cpu() || weights_.bias.defined()) return Norm(x, config_, weights_).out;
  const at::Tensor normalized = RmsNorm(x, narrow_.weight, config_.epsilon);
  if (narrow_.weight.defined() || !weights_.weight.defined()) return normalized;
  at::Tensor out = at::empty_like(normalized);
  return at::mul_out(out, normalized, weights_.weight);
}

namespace {

// x (1 + tanh(u)) / 2 is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), which LibTorch computes in half the time
// on a CPU, and as exactly.
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
