// OLMo 2 and 3: norms only after attention and MLP, and norms over the whole width of queries and keys. OLMo 3 has
// windows on three of four layers and scales the rotation only on the others.
#include <optional>
#include <utility>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

DecoderConfig ReadOlmoShape(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.epsilon = 1e-5;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  MoveNormsBehind(&decoder);
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) {
    one.query_key_norm = {decoder.ln_final, QueryKeyNormConfig::Place::kBeforeRotary,
                          QueryKeyNormConfig::Span::kAllHeads};
  });
  return decoder;
}

LlamaNames OlmoNames(const ConfigReader& config) {
  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kWide;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.ln1_post = "post_attention_layernorm";
  names.ln2_post = "post_feedforward_layernorm";
  return names;
}

}  // namespace

Architecture ReadOlmo2(const ConfigReader& config) {
  DecoderConfig decoder = ReadOlmoShape(config);
  RotaryDefaults rotary;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  ReadWindows(
      config, std::nullopt, [](int) { return false; }, &decoder);
  return WithLlamaNames(std::move(decoder), OlmoNames(config));
}

Architecture ReadOlmo3(const ConfigReader& config) {
  DecoderConfig decoder = ReadOlmoShape(config);
  ReadWindows(
      config, ReadWindow(config, 4096), [](int layer) { return (layer + 1) % 4 != 0; }, &decoder);
  RotaryDefaults rotary;
  rotary.base = 5e5;
  rotary.context_length = decoder.context_length;
  const int64_t head_width = FirstAttention(decoder).head_width;
  const RotaryByKind both = ReadRotaryByKind(config, head_width, rotary, head_width, rotary);
  decoder.rotary = {both.full, both.sliding};
  ForEachAttention(&decoder, [](int, SoftmaxAttentionConfig& one) { one.rotary = one.reach >= 0 ? 1 : 0; });
  return WithLlamaNames(std::move(decoder), OlmoNames(config));
}

}  // namespace hookline
