// OLMo 2: norms only after attention and MLP, and over the whole width of queries and keys.
#include <optional>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"

namespace hookline {

Architecture ReadOlmo2(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.epsilon = 1e-5;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.activation = ReadActivation(config, "hidden_act", "silu");
  decoder.rotary = {ReadRotary(config, decoder.head_width, {})};
  ReadWindows(
      config, std::nullopt, [](int) { return false; }, &decoder);
  decoder.ln1_post = decoder.ln2_post = decoder.ln1;
  decoder.ln1 = decoder.ln2 = NormConfig{};
  decoder.query_key_norm.norm = decoder.ln_final;
  decoder.query_key_norm.span = QueryKeyNormConfig::Span::kAllHeads;

  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kWide;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.ln1_post = "post_attention_layernorm";
  names.ln2_post = "post_feedforward_layernorm";
  return {std::move(decoder),
          [names](const DecoderConfig& made, WeightTaker& take) { return TakeLlamaWeights(made, names, take); }};
}

}  // namespace hookline
