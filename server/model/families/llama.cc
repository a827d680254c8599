// Llama, Mistral, Qwen 2 and Qwen 3: norms before attention and MLP, rotation, grouped queries, a gated MLP.
#include <optional>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

DecoderConfig ReadLlamaLike(const ConfigReader& config, const ShapeDefaults& defaults) {
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  RotaryDefaults rotary;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  return decoder;
}

bool NoLayer(int /*layer*/) { return false; }

// Also reads Ministral, whose files name each layer's kind.
DecoderConfig ReadMistralConfig(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = int64_t{4096} * 32;
  if (!config.IsNull("num_key_value_heads")) defaults.key_value_heads = 8;
  DecoderConfig decoder = ReadLlamaLike(config, defaults);
  const std::optional<int64_t> window = ReadWindow(config, 4096);
  ReadWindows(
      config, window, [&](int) { return window.has_value(); }, &decoder);
  return decoder;
}

// Qwen has a flag that turns the window on.
void ReadQwenWindows(const ConfigReader& config, DecoderConfig* decoder) {
  std::optional<int64_t> window;
  if (config.Flag("use_sliding_window", false)) window = ReadWindow(config, 4096);
  const int64_t first = config.Count("max_window_layers", 28);
  ReadWindows(
      config, window, [&](int layer) { return window.has_value() && layer >= first; }, decoder);
}

}  // namespace

Architecture ReadLlama(const ConfigReader& config) {
  DecoderConfig decoder = ReadLlamaLike(config, {});
  ReadWindows(config, std::nullopt, NoLayer, &decoder);
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.mlp_bias = config.Flag("mlp_bias", false);
  return WithLlamaNames(std::move(decoder), names);
}

Architecture ReadMistral(const ConfigReader& config) { return WithLlamaNames(ReadMistralConfig(config), {}); }

Architecture ReadMistral3(const ConfigReader& config) {
  if (!config.Has("text_config")) config.Refuse("text_config", "expected the language model's configuration");
  const ConfigReader text = TextConfig(config, "mistral");
  return WithLlamaNamesBesideTowers(ReadMistralConfig(text), {});
}

Architecture ReadQwen2(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 32768;
  DecoderConfig decoder = ReadLlamaLike(config, defaults);
  ReadQwenWindows(config, &decoder);
  LlamaNames names;
  names.query_key_value_bias = true;
  return WithLlamaNames(std::move(decoder), names);
}

Architecture ReadQwen3(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 32768;
  defaults.head_width = 128;
  DecoderConfig decoder = ReadLlamaLike(config, defaults);
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) { one.query_key_norm.norm = decoder.ln1; });
  ReadQwenWindows(config, &decoder);
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  return WithLlamaNames(std::move(decoder), names);
}

}  // namespace hookline
