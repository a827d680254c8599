#include "server/model/families/gpt_weights.h"

#include <cstdint>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"

namespace hookline {

DecoderWeights TakeGptWeights(const DecoderConfig& config, const GptNames& names, WeightTaker& take) {
  const int64_t d = config.width;
  const std::string prefix = take.Has("wte.weight") ? "" : "transformer.";
  DecoderWeights weights;
  weights.token_embedding = take.Table(prefix + "wte.weight", {config.vocabulary_size, d});
  if (config.position_embedding) {
    weights.position_embedding = take.Table(prefix + "wpe.weight", {config.context_length, d});
  }
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat(prefix, "h.", i, "."), self = block + names.attention;
    const int64_t hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
    SoftmaxAttentionWeights attention;
    attention.query = TakeLinear(take, self + "q_proj", d, d, Bias::kNone);
    attention.key = TakeLinear(take, self + "k_proj", d, d, Bias::kNone);
    attention.value = TakeLinear(take, self + "v_proj", d, d, Bias::kNone);
    attention.out = TakeLinear(take, self + "out_proj", d, d, names.out_bias);
    DenseWeights mlp;
    mlp.up = TakeLinear(take, block + names.up, d, hidden, Bias::kThere);
    mlp.down = TakeLinear(take, block + names.down, hidden, d, Bias::kThere);
    LayerWeights layer;
    layer.ln1 = TakeLayerNorm(take, block + "ln_1", d);
    if (config.ln2.kind != NormConfig::Kind::kNone) layer.ln2 = TakeLayerNorm(take, block + "ln_2", d);
    layer.attention = std::move(attention);
    layer.feed_forward = std::move(mlp);
    // Old files hold these masks.
    for (const char* buffer : {"bias", "masked_bias"}) take.Ignore(self + buffer);
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeLayerNorm(take, prefix + "ln_f", d);
  TakeHead(take, "lm_head", prefix + "wte.weight", config, d, &weights);
  return weights;
}

}  // namespace hookline
