// Granite: Llama with factors on the embedding, on the scores, and on what attention and MLP add. The logits are
// divided by `logits_scaling`.
#include <optional>
#include <utility>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {

Architecture ReadGranite(const ConfigReader& config) {
  DecoderConfig decoder = ReadLlamaShape(config, {});
  RotaryDefaults rotary;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  decoder.embedding_scale = config.Number("embedding_multiplier", 1);
  decoder.logit_scale = 1 / config.Number("logits_scaling", 1);
  decoder.branch_scale = config.Number("residual_multiplier", 1);
  const double scale = config.Number("attention_multiplier", 1);
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) { one.scale = scale; });
  ReadWindows(
      config, std::nullopt, [](int) { return false; }, &decoder);
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.mlp_bias = config.Flag("mlp_bias", false);
  return WithLlamaNames(std::move(decoder), std::move(names));
}

}  // namespace hookline
