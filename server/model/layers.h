// The small layers of a decoder. Rows are (rows, width) throughout.
#ifndef HOOKLINE_SERVER_MODEL_LAYERS_H_
#define HOOKLINE_SERVER_MODEL_LAYERS_H_

#include <ATen/ATen.h>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"

namespace hookline {

// Returns x weight + bias.
at::Tensor Linear(const at::Tensor& x, const LinearWeights& weights);

// The result of a norm over the last axis, before its learned weight and after it, both in x's dtype. The norm is
// computed in float32 where x is narrower. Without a weight both are the same tensor.
struct Normed {
  at::Tensor normalized;
  at::Tensor out;
};
Normed Norm(const at::Tensor& x, const NormConfig& config, const NormWeights& weights);

// Returns Norm's divisors of the rows, (rows, 1) in float32: sqrt(mean(y^2) + epsilon), where y is x or x - mean(x).
at::Tensor NormScale(const at::Tensor& x, const NormConfig& config);

// Computes Norm with `scale` in place of NormScale.
Normed NormBy(const at::Tensor& scale, const at::Tensor& x, const NormConfig& config, const NormWeights& weights);

// Returns Norm's `out` for `normalized`, the value before the learned weight, in the dtype of `normalized`.
at::Tensor Weighted(const at::Tensor& normalized, const NormWeights& weights);

// A norm that computes only Norm's `out`, with one kernel where there is one; such a kernel can round once more or
// less. The norm also keeps its weights in the model's dtype, for this kernel.
class OutputNorm {
 public:
  OutputNorm() = default;
  // `dtype` is the model's.
  OutputNorm(const NormConfig& config, NormWeights weights, at::ScalarType dtype);

  const NormConfig& config() const { return config_; }
  const NormWeights& weights() const { return weights_; }

  at::Tensor operator()(const at::Tensor& x) const;

 private:
  NormConfig config_;
  NormWeights weights_;
  NormWeights narrow_;  // undefined if the conversion would change them and the reference does not convert
};

at::Tensor Activate(const at::Tensor& x, Activation activation);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LAYERS_H_
