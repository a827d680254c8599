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

// Returns what Norm makes of `normalized`, a norm before its learned weight: its `out`, in the dtype of `normalized`.
at::Tensor Weighted(const at::Tensor& normalized, const NormWeights& weights);

at::Tensor Activate(const at::Tensor& x, Activation activation);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LAYERS_H_
