#include "server/model/attention/attention.h"

#include <utility>
#include <variant>

#include "server/model/attention/gated_delta.h"
#include "server/model/attention/latent_attention.h"
#include "server/model/attention/softmax_attention.h"

namespace hookline {

std::unique_ptr<Attention> MakeAttention(const DecoderConfig& config, int layer, AttentionWeights weights,
                                         HookPointList& hook_points) {
  const AttentionConfig& kind = config.layers[layer].attention;
  if (const auto* latent = std::get_if<LatentAttentionConfig>(&kind)) {
    return std::make_unique<LatentAttention>(*latent, std::get<LatentAttentionWeights>(std::move(weights)),
                                             hook_points);
  }
  if (const auto* delta = std::get_if<GatedDeltaConfig>(&kind)) {
    return std::make_unique<GatedDelta>(*delta, std::get<GatedDeltaWeights>(std::move(weights)), hook_points);
  }
  return std::make_unique<SoftmaxAttention>(std::get<SoftmaxAttentionConfig>(kind), layer,
                                            std::get<SoftmaxAttentionWeights>(std::move(weights)), hook_points);
}

}  // namespace hookline
