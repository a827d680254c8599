// GPT-2: learned positions, LayerNorm, a plain MLP. Its linear weights are stored as (in, out).
#include <cmath>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/take_layers.h"

namespace hookline {
namespace {

LinearWeights TakeInOut(WeightTaker& take, const std::string& name, int64_t in, int64_t out) {
  return {take.Get(name + ".weight", {in, out}), take.Get(name + ".bias", {out})};
}

DecoderWeights TakeWeights(const DecoderConfig& config, WeightTaker& take) {
  const int64_t d = config.width;
  // The names of GPT2LMHeadModel have a prefix; those of GPT2Model and of the published files have none.
  const std::string prefix = take.Has("wte.weight") ? "" : "transformer.";
  DecoderWeights weights;
  weights.token_embedding = take.Table(prefix + "wte.weight", {config.vocabulary_size, d});
  weights.position_embedding = take.Table(prefix + "wpe.weight", {config.context_length, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat(prefix, "h.", i, ".");
    LayerWeights layer;
    layer.ln1 = TakeLayerNorm(take, block + "ln_1", d);
    layer.ln2 = TakeLayerNorm(take, block + "ln_2", d);
    const LinearWeights all = TakeInOut(take, block + "attn.c_attn", d, 3 * d);
    SoftmaxAttentionWeights attention;
    attention.query = Outputs(all, 0, d);
    attention.key = Outputs(all, d, d);
    attention.value = Outputs(all, 2 * d, d);
    attention.out = TakeInOut(take, block + "attn.c_proj", d, d);
    const int64_t hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
    DenseWeights mlp;
    mlp.up = TakeInOut(take, block + "mlp.c_fc", d, hidden);
    mlp.down = TakeInOut(take, block + "mlp.c_proj", hidden, d);
    layer.attention = std::move(attention);
    layer.feed_forward = std::move(mlp);
    take.Ignore(block + "attn.bias");
    take.Ignore(block + "attn.masked_bias");
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeLayerNorm(take, prefix + "ln_f", d);
  TakeHead(take, "lm_head", prefix + "wte.weight", config, d, &weights);
  return weights;
}

}  // namespace

Architecture ReadGpt2(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("n_embd");
  SoftmaxAttentionConfig attention;
  attention.heads = attention.key_value_heads = config.Integer("n_head");
  attention.head_width = HeadWidth(config, "n_embd", decoder.width, "n_head", attention.heads);
  DenseConfig mlp;
  mlp.width = config.Integer("n_inner", 4 * decoder.width);
  mlp.activation = ReadActivation(config, "activation_function", "gelu_new");
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("n_positions", 1024);
  decoder.position_embedding = true;
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_epsilon", 1e-5), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  const int64_t layers = config.Integer("n_layer", std::nullopt, kMaxLayers);
  AgreeWithAliases(config, decoder, attention.heads, layers);
  const double scale =
      config.Flag("scale_attn_weights", true) ? 1 / std::sqrt(static_cast<double>(attention.head_width)) : 1;
  const bool by_layer = config.Flag("scale_attn_by_inverse_layer_idx", false);
  for (int64_t i = 0; i < layers; ++i) {
    attention.scale = by_layer ? scale / static_cast<double>(i + 1) : scale;
    decoder.layers.push_back({attention, mlp});
  }
  return {std::move(decoder), TakeWeights};
}

}  // namespace hookline
