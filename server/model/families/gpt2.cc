// GPT-2: learned positions, LayerNorm, a plain MLP. Its linear weights are stored as (in, out).
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"

namespace hookline {
namespace {

LinearWeights TakeLinear(WeightTaker& take, const std::string& name, int64_t in, int64_t out) {
  return {take.Get(name + ".weight", {in, out}), take.Get(name + ".bias", {out})};
}

NormWeights TakeNorm(WeightTaker& take, const std::string& name, int64_t width) {
  return {take.Wide(name + ".weight", {width}), take.Wide(name + ".bias", {width})};
}

// Columns `part` x width and on.
LinearWeights Part(const LinearWeights& all, int64_t part, int64_t width) {
  if (!all.weight.defined() || !all.bias.defined()) return {};
  return {all.weight.narrow(1, part * width, width), all.bias.narrow(0, part * width, width)};
}

DecoderWeights TakeWeights(const DecoderConfig& config, WeightTaker& take) {
  const int64_t d = config.width;
  // GPT2LMHeadModel's names have a prefix, GPT2Model's and the hub's have none.
  const std::string prefix = take.Has("wte.weight") ? "" : "transformer.";
  DecoderWeights weights;
  weights.token_embedding = take.Table(prefix + "wte.weight", {config.vocabulary_size, d});
  weights.position_embedding = take.Table(prefix + "wpe.weight", {config.context_length, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat(prefix, "h.", i, ".");
    LayerWeights layer;
    layer.ln1 = TakeNorm(take, block + "ln_1", d);
    layer.ln2 = TakeNorm(take, block + "ln_2", d);
    const LinearWeights all = TakeLinear(take, block + "attn.c_attn", d, 3 * d);
    layer.query = Part(all, 0, d);
    layer.key = Part(all, 1, d);
    layer.value = Part(all, 2, d);
    layer.attention_out = TakeLinear(take, block + "attn.c_proj", d, d);
    layer.up = TakeLinear(take, block + "mlp.c_fc", d, config.mlp_width);
    layer.down = TakeLinear(take, block + "mlp.c_proj", config.mlp_width, d);
    take.Ignore(block + "attn.bias");
    take.Ignore(block + "attn.masked_bias");
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeNorm(take, prefix + "ln_f", d);
  if (take.Has("lm_head.weight")) take.Ignore("lm_head.weight", {config.vocabulary_size, d});
  return weights;
}

}  // namespace

Architecture ReadGpt2(const ConfigReader& config) {
  if (config.Flag("add_cross_attention", false)) config.Refuse("add_cross_attention", "only false is computed");
  DecoderConfig decoder;
  decoder.width = config.Integer("n_embd");
  decoder.heads = decoder.key_value_heads = config.Integer("n_head");
  decoder.head_width = HeadWidth(config, "n_embd", decoder.width, "n_head", decoder.heads);
  decoder.mlp_width = config.Integer("n_inner", 4 * decoder.width);
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("n_positions", 1024);
  decoder.position_embedding = true;
  decoder.activation = ReadActivation(config, "activation_function", "gelu_new");
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_epsilon", 1e-5), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  const int64_t layers = config.Integer("n_layer", std::nullopt, kMaxLayers);
  const double scale =
      config.Flag("scale_attn_weights", true) ? 1 / std::sqrt(static_cast<double>(decoder.head_width)) : 1;
  const bool by_layer = config.Flag("scale_attn_by_inverse_layer_idx", false);
  for (int64_t i = 0; i < layers; ++i) {
    LayerConfig layer;
    layer.attention_scale = by_layer ? scale / static_cast<double>(i + 1) : scale;
    decoder.layers.push_back(layer);
  }
  return {std::move(decoder), TakeWeights};
}

}  // namespace hookline
