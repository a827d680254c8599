// GPT-NeoX and Pythia: attention and MLP in parallel, LayerNorm, rotation of a part of each head, a plain MLP.
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"

namespace hookline {
namespace {

constexpr bool kBias = true;

LinearWeights TakeLinear(WeightTaker& take, const std::string& name, int64_t in, int64_t out, bool bias) {
  LinearWeights weights;
  weights.weight = take.Linear(name + ".weight", in, out);
  if (bias) weights.bias = take.Get(name + ".bias", {out});
  return weights;
}

NormWeights TakeNorm(WeightTaker& take, const std::string& name, int64_t width) {
  return {take.Wide(name + ".weight", {width}), take.Wide(name + ".bias", {width})};
}

DecoderWeights TakeWeights(const DecoderConfig& config, bool attention_bias, WeightTaker& take) {
  const int64_t d = config.width;
  DecoderWeights weights;
  weights.token_embedding = take.Table("gpt_neox.embed_in.weight", {config.vocabulary_size, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat("gpt_neox.layers.", i, ".");
    LayerWeights layer;
    layer.ln1 = TakeNorm(take, block + "input_layernorm", d);
    layer.ln2 = TakeNorm(take, block + "post_attention_layernorm", d);
    layer.query_key_value = TakeLinear(take, block + "attention.query_key_value", d, 3 * d, attention_bias);
    layer.attention_out = TakeLinear(take, block + "attention.dense", d, d, attention_bias);
    layer.up = TakeLinear(take, block + "mlp.dense_h_to_4h", d, config.mlp_width, kBias);
    layer.down = TakeLinear(take, block + "mlp.dense_4h_to_h", config.mlp_width, d, kBias);
    for (const char* buffer : {"bias", "masked_bias", "rotary_emb.inv_freq"}) {
      take.Ignore(absl::StrCat(block, "attention.", buffer));
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeNorm(take, "gpt_neox.final_layer_norm", d);
  take.Ignore("gpt_neox.rotary_emb.inv_freq");
  if (take.Has("embed_out.weight")) take.Ignore("embed_out.weight", {config.vocabulary_size, d});
  return weights;
}

}  // namespace

Architecture ReadGptNeox(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  decoder.heads = decoder.key_value_heads = config.Integer("num_attention_heads");
  decoder.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_attention_heads", decoder.heads);
  decoder.mlp_width = config.Integer("intermediate_size");
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("max_position_embeddings", 2048);
  decoder.activation = ReadActivation(config, "hidden_act", "gelu");
  decoder.parallel = config.Flag("use_parallel_residual", true);
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_eps", 1e-5), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  RotaryDefaults rotary;
  rotary.base_key = "rotary_emb_base";
  rotary.share_key = "rotary_pct";
  rotary.share = 0.25;
  decoder.rotary = {ReadRotary(config, decoder.head_width, rotary)};
  LayerConfig layer;
  layer.rotary = 0;
  layer.attention_scale = 1 / std::sqrt(static_cast<double>(decoder.head_width));
  decoder.layers.assign(static_cast<size_t>(config.Integer("num_hidden_layers", std::nullopt, kMaxLayers)), layer);
  const bool attention_bias = config.Flag("attention_bias", true);
  return {std::move(decoder), [attention_bias](const DecoderConfig& made, WeightTaker& take) {
            return TakeWeights(made, attention_bias, take);
          }};
}

}  // namespace hookline
