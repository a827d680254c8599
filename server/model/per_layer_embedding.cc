#include "server/model/per_layer_embedding.h"

#include <cmath>

#include "server/model/layers.h"

namespace hookline {

at::Tensor EmbedPerLayer(const DecoderConfig& config, const DecoderWeights& weights, const at::Tensor& token_ids,
                         const at::Tensor& x0) {
  const int64_t part = config.per_layer_embedding.width, layers = static_cast<int64_t>(config.layers.size());
  if (part == 0) return {};
  const at::Tensor projected = Linear(x0, weights.per_layer_projection) * (1 / std::sqrt(config.width));
  const at::Tensor normed =
      Norm(projected.view({-1, layers, part}), config.per_layer_embedding.norm, weights.per_layer_norm).out;
  const at::Tensor embedded =
      at::index_select(weights.per_layer_embedding, 0, token_ids.reshape(-1)).to(x0.scalar_type());
  // The factor is rounded to the model's dtype, too.
  const at::Tensor factor = at::scalar_tensor(std::sqrt(part), x0.options());
  return (normed + (embedded * factor).view({-1, layers, part})) * M_SQRT1_2;
}

at::Tensor PerLayerPart(const PerLayerEmbeddingConfig& config, const PerLayerWeights& weights, const at::Tensor& x,
                        const at::Tensor& part) {
  const at::Tensor gated = Activate(Linear(x, weights.gate), config.activation).mul_(part);
  return Norm(Linear(gated, weights.out), config.norm, weights.norm).out;
}

}  // namespace hookline
