// The small layers that a decoder is made of. Rows are (rows, width) throughout.
#ifndef HOOKLINE_SERVER_MODEL_LAYERS_H_
#define HOOKLINE_SERVER_MODEL_LAYERS_H_

#include <ATen/ATen.h>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"

namespace hookline {

// x weight + bias.
at::Tensor Linear(const at::Tensor& x, const LinearWeights& weights);

// A norm over the last axis, before its learned weight and after it, both in x's dtype. Computed in float32 where x is
// narrower. Without a weight both are the same tensor.
struct Normed {
  at::Tensor normalized;
  at::Tensor out;
};
Normed Norm(const at::Tensor& x, const NormConfig& config, const NormWeights& weights);

// What Norm divides each row by, (rows, 1) in float32: sqrt(mean(x^2) + epsilon), of a layer norm that of x - mean(x).
at::Tensor NormScale(const at::Tensor& x, const NormConfig& config);

// Norm with `scale` in the place of NormScale.
Normed NormBy(const at::Tensor& scale, const at::Tensor& x, const NormConfig& config, const NormWeights& weights);

// What Norm makes of `normalized`, a norm before its learned weight: its `out`, in the dtype of `normalized`.
at::Tensor Weighted(const at::Tensor& normalized, const NormWeights& weights);

at::Tensor Activate(const at::Tensor& x, Activation activation);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LAYERS_H_
