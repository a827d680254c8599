// Further embeddings of each token, one for each layer, which are added to the residual stream at each block's end
// (Gemma 3n, Gemma 4).
//
// L layers, a part of M values for each, D = width, x0 the scaled embedding (hook_embed):
//   P = norm(x0 W / sqrt(D)), E = table[id] sqrt(M)          (L M), the norm over each layer's M
//   p = (P + E) / sqrt(2)
//   x = x + norm_i((act(x Wgate_i) * p_i) Wout_i)            in layer i, after attention and MLP were added
#ifndef HOOKLINE_SERVER_MODEL_PER_LAYER_EMBEDDING_H_
#define HOOKLINE_SERVER_MODEL_PER_LAYER_EMBEDDING_H_

#include <ATen/ATen.h>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"

namespace hookline {

// Returns p of all layers, (B * T, L, M); undefined if the decoder has no such embeddings. x0 is (B * T, D), token_ids
// (B, T).
at::Tensor EmbedPerLayer(const DecoderConfig& config, const DecoderWeights& weights, const at::Tensor& token_ids,
                         const at::Tensor& x0);

// Returns the term that a layer adds to its x (B * T, D); `part` (B * T, M) is the layer's p.
at::Tensor PerLayerPart(const PerLayerEmbeddingConfig& config, const PerLayerWeights& weights, const at::Tensor& x,
                        const at::Tensor& part);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_PER_LAYER_EMBEDDING_H_
