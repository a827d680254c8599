// GPT-NeoX and Pythia: attention and MLP in parallel, LayerNorm, rotation of part of each head, a plain MLP.
#include <cmath>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/rope_fields.h"
#include "server/model/families/take_layers.h"

namespace hookline {
namespace {

DecoderWeights TakeWeights(const DecoderConfig& config, Bias attention_bias, WeightTaker& take) {
  const int64_t d = config.width;
  DecoderWeights weights;
  weights.token_embedding = take.Table("gpt_neox.embed_in.weight", {config.vocabulary_size, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat("gpt_neox.layers.", i, ".");
    LayerWeights layer;
    layer.ln1 = TakeLayerNorm(take, block + "input_layernorm", d);
    layer.ln2 = TakeLayerNorm(take, block + "post_attention_layernorm", d);
    SoftmaxAttentionWeights attention;
    attention.query_key_value = TakeLinear(take, block + "attention.query_key_value", d, 3 * d, attention_bias);
    attention.out = TakeLinear(take, block + "attention.dense", d, d, attention_bias);
    layer.attention = std::move(attention);
    const int64_t hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
    DenseWeights mlp;
    mlp.up = TakeLinear(take, block + "mlp.dense_h_to_4h", d, hidden, Bias::kThere);
    mlp.down = TakeLinear(take, block + "mlp.dense_4h_to_h", hidden, d, Bias::kThere);
    layer.feed_forward = std::move(mlp);
    for (const char* buffer : {"bias", "masked_bias", "rotary_emb.inv_freq"}) {
      take.Ignore(absl::StrCat(block, "attention.", buffer));
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeLayerNorm(take, "gpt_neox.final_layer_norm", d);
  take.Ignore("gpt_neox.rotary_emb.inv_freq");
  // transformers 5 writes the name lm_head.
  TakeHead(take, take.Has("embed_out.weight") ? "embed_out" : "lm_head", "gpt_neox.embed_in.weight", config, d,
           &weights);
  return weights;
}

}  // namespace

Architecture ReadGptNeox(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  SoftmaxAttentionConfig attention;
  attention.heads = attention.key_value_heads = config.Integer("num_attention_heads");
  attention.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_attention_heads", attention.heads);
  attention.rotary = 0;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  DenseConfig mlp;
  mlp.width = config.Integer("intermediate_size");
  mlp.activation = ReadActivation(config, "hidden_act", "gelu");
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("max_position_embeddings", 2048);
  if (config.Flag("use_parallel_residual", true)) decoder.arrangement = DecoderConfig::Arrangement::kParallel;
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_eps", 1e-5), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  RotaryDefaults rotary;
  rotary.base_key = "rotary_emb_base";
  rotary.share_key = "rotary_pct";
  rotary.share = 0.25;
  rotary.common_names_too = true;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, attention.head_width, rotary)};
  decoder.layers.assign(static_cast<size_t>(config.Integer("num_hidden_layers", std::nullopt, kMaxLayers)),
                        LayerConfig{attention, mlp});
  const Bias bias = BiasIf(config.Flag("attention_bias", true));
  return {std::move(decoder),
          [bias](const DecoderConfig& made, WeightTaker& take) { return TakeWeights(made, bias, take); }};
}

}  // namespace hookline
