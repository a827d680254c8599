// Gemma 1, 2 and 3: a scaled embedding and norms that multiply by 1 + w. From Gemma 2 on, there are also norms after
// attention and MLP, and windows on most layers.
#include <cmath>
#include <optional>
#include <utility>
#include <variant>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

LlamaNames GemmaNames(const ConfigReader& config) {
  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kOnePlus;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  return names;
}

// The names in Gemma 2 and 3.
LlamaNames SandwichNames(const ConfigReader& config) {
  LlamaNames names = GemmaNames(config);
  names.ln1_post = "post_attention_layernorm";
  names.ln2 = "pre_feedforward_layernorm";
  names.ln2_post = "post_feedforward_layernorm";
  return names;
}

DecoderConfig ReadGemmaShape(const ConfigReader& config, ShapeDefaults defaults) {
  defaults.head_width = 256;
  if (config.Flag("use_bidirectional_attention", false)) {
    config.Refuse("use_bidirectional_attention", "attention that looks ahead is not supported");
  }
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.embedding_scale = std::sqrt(static_cast<double>(decoder.width));
  return decoder;
}

RotaryConfig ReadPlainRotary(const ConfigReader& config, DecoderConfig& decoder) {
  RotaryDefaults rotary;
  rotary.context_length = decoder.context_length;
  return ReadRotary(config, FirstAttention(decoder).head_width, rotary);
}

// The configuration that Gemma 2 and 3 share.
DecoderConfig ReadSandwich(const ConfigReader& config, ShapeDefaults defaults) {
  defaults.activation_key = "hidden_activation";
  defaults.activation = "gelu_pytorch_tanh";
  DecoderConfig decoder = ReadGemmaShape(config, defaults);
  decoder.ln1_post = decoder.ln2_post = decoder.ln1;
  const double scale = 1 / std::sqrt(config.Number("query_pre_attn_scalar", 256));
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) { one.scale = scale; });
  return decoder;
}

DecoderConfig ReadGemma3Config(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.heads = 8;
  defaults.key_value_heads = 4;
  defaults.vocabulary_size = 262208;
  defaults.context_length = 131072;
  DecoderConfig decoder = ReadSandwich(config, defaults);
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) { one.query_key_norm.norm = decoder.ln1; });
  decoder.logit_soft_cap = config.Number("final_logit_softcapping", 0);
  const int64_t pattern =
      config.Integer("sliding_window_pattern", config.Integer("_sliding_window_pattern", /*fallback=*/6));
  ReadWindows(
      config, ReadWindow(config, 4096), [&](int layer) { return (layer + 1) % pattern != 0; }, &decoder);

  // Layers that see all positions use rotation 0, layers with a window use rotation 1.
  const int64_t head_width = FirstAttention(decoder).head_width;
  RotaryDefaults full, sliding;
  full.base = 1e6;
  full.context_length = sliding.context_length = decoder.context_length;
  sliding.base_key = "rope_local_base_freq";
  const RotaryByKind rotary = ReadRotaryByKind(config, head_width, full, head_width, sliding);
  decoder.rotary = {rotary.full, rotary.sliding};
  ForEachAttention(&decoder, [](int, SoftmaxAttentionConfig& one) { one.rotary = one.reach >= 0 ? 1 : 0; });
  return decoder;
}

}  // namespace

Architecture ReadGemma(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 8192;
  defaults.activation = "gelu_pytorch_tanh";
  // "gelu" in `hidden_act` means the approximation, since the first configurations had it by mistake.
  const bool by_new_name = config.Has("hidden_activation");
  if (by_new_name) defaults.activation_key = "hidden_activation";
  DecoderConfig decoder = ReadGemmaShape(config, defaults);
  if (!by_new_name && config.Text("hidden_act", "gelu_pytorch_tanh") == "gelu") {
    for (LayerConfig& layer : decoder.layers) {
      std::get<DenseConfig>(layer.feed_forward).activation = Activation::kGeluTanh;
    }
  }
  decoder.rotary = {ReadPlainRotary(config, decoder)};
  ReadWindows(
      config, std::nullopt, [](int) { return false; }, &decoder);
  return WithLlamaNames(std::move(decoder), GemmaNames(config));
}

Architecture ReadGemma2(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 8192;
  DecoderConfig decoder = ReadSandwich(config, defaults);
  if (!config.IsNull("attn_logit_softcapping")) {
    const double cap = config.Number("attn_logit_softcapping", 50);
    ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) { one.soft_cap = cap; });
  }
  if (!config.IsNull("final_logit_softcapping")) decoder.logit_soft_cap = config.Number("final_logit_softcapping", 30);
  decoder.rotary = {ReadPlainRotary(config, decoder)};
  ReadWindows(
      config, ReadWindow(config, 4096), [](int layer) { return layer % 2 == 0; }, &decoder);
  return WithLlamaNames(std::move(decoder), SandwichNames(config));
}

Architecture ReadGemma3(const ConfigReader& config) {
  return WithLlamaNames(ReadGemma3Config(config), SandwichNames(config));
}

Architecture ReadGemma3Multimodal(const ConfigReader& config) {
  if (!config.Has("text_config")) config.Refuse("text_config", "expected the language model's configuration");
  const ConfigReader text = TextConfig(config, "gemma3_text");
  return WithLlamaNamesBesideTowers(ReadGemma3Config(text), SandwichNames(text));
}

}  // namespace hookline
