// Gemma 1, 2 and 3: a scaled embedding and norms that multiply by 1 + w; from Gemma 2 on norms after attention and MLP
// too, and windows on most layers.
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"

namespace hookline {
namespace {

LlamaNames GemmaNames(const ConfigReader& config) {
  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kOnePlus;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  return names;
}

// The names from Gemma 2 on.
LlamaNames SandwichNames(const ConfigReader& config) {
  LlamaNames names = GemmaNames(config);
  names.ln1_post = "post_attention_layernorm";
  names.ln2 = "pre_feedforward_layernorm";
  names.ln2_post = "post_feedforward_layernorm";
  return names;
}

Architecture WithNames(DecoderConfig decoder, const LlamaNames& names) {
  return {std::move(decoder),
          [names](const DecoderConfig& config, WeightTaker& take) { return TakeLlamaWeights(config, names, take); }};
}

DecoderConfig ReadGemmaShape(const ConfigReader& config, ShapeDefaults defaults) {
  defaults.head_width = 256;
  if (config.Flag("use_bidirectional_attention", false)) {
    config.Refuse("use_bidirectional_attention", "attention that looks ahead is not computed");
  }
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.embedding_scale = std::sqrt(static_cast<double>(decoder.width));
  return decoder;
}

// What Gemma 2 and 3 share.
DecoderConfig ReadSandwich(const ConfigReader& config, const ShapeDefaults& defaults) {
  DecoderConfig decoder = ReadGemmaShape(config, defaults);
  decoder.activation = ReadActivation(config, "hidden_activation", "gelu_pytorch_tanh");
  decoder.ln1_post = decoder.ln2_post = decoder.ln1;
  const double scale = 1 / std::sqrt(config.Number("query_pre_attn_scalar", 256));
  for (LayerConfig& layer : decoder.layers) layer.attention_scale = scale;
  return decoder;
}

DecoderConfig ReadGemma3Config(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.heads = 8;
  defaults.key_value_heads = 4;
  defaults.vocabulary_size = 262208;
  defaults.context_length = 131072;
  DecoderConfig decoder = ReadSandwich(config, defaults);
  decoder.query_key_norm.norm = decoder.ln1;
  const int64_t pattern =
      config.Integer("sliding_window_pattern", config.Integer("_sliding_window_pattern", /*fallback=*/6));
  ReadWindows(
      config, config.Integer("sliding_window", 4096), [&](int layer) { return (layer + 1) % pattern != 0; }, &decoder);

  // Rotation 0 is that of the layers which see everything, 1 that of those with a window.
  const double base = config.Number("rope_theta", 1e6), local_base = config.Number("rope_local_base_freq", 1e4);
  if (config.Has("rope_parameters")) {
    const ConfigReader parameters = config.Object("rope_parameters");
    for (const char* kind : {"full_attention", "sliding_attention"}) {
      if (!parameters.Has(kind)) parameters.Refuse(kind, "Gemma 3 has a rotation for either kind of layer");
    }
    const ConfigReader full = parameters.Object("full_attention"), sliding = parameters.Object("sliding_attention");
    decoder.rotary = {
        ReadRotaryScaling(full, decoder.head_width, full.Number("rope_theta", base), /*share=*/1),
        ReadRotaryScaling(sliding, decoder.head_width, sliding.Number("rope_theta", local_base), /*share=*/1)};
  } else {
    decoder.rotary = {ReadRotaryScaling(config.Object("rope_scaling"), decoder.head_width, base, /*share=*/1),
                      RotaryConfig{decoder.head_width, local_base}};
  }
  for (LayerConfig& layer : decoder.layers) layer.rotary = LayerSlides(layer) ? 1 : 0;
  return decoder;
}

}  // namespace

Architecture ReadGemma(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 8192;
  DecoderConfig decoder = ReadGemmaShape(config, defaults);
  // "gelu" in `hidden_act` means the approximation, as the first configurations had it by mistake.
  const std::string act = config.Text("hidden_act", "gelu_pytorch_tanh");
  if (config.Has("hidden_activation")) {
    decoder.activation = ReadActivation(config, "hidden_activation", std::nullopt);
  } else {
    decoder.activation =
        act == "gelu" ? Activation::kGeluTanh : ReadActivation(config, "hidden_act", "gelu_pytorch_tanh");
  }
  decoder.rotary = {ReadRotary(config, decoder.head_width, {})};
  ReadWindows(
      config, std::nullopt, [](int) { return false; }, &decoder);
  return WithNames(std::move(decoder), GemmaNames(config));
}

Architecture ReadGemma2(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 8192;
  DecoderConfig decoder = ReadSandwich(config, defaults);
  if (!config.IsNull("attn_logit_softcapping")) {
    decoder.attention_soft_cap = config.Number("attn_logit_softcapping", 50);
  }
  decoder.rotary = {ReadRotary(config, decoder.head_width, {})};
  ReadWindows(
      config, config.Integer("sliding_window", 4096), [](int layer) { return layer % 2 == 0; }, &decoder);
  return WithNames(std::move(decoder), SandwichNames(config));
}

Architecture ReadGemma3(const ConfigReader& config) {
  return WithNames(ReadGemma3Config(config), SandwichNames(config));
}

Architecture ReadGemma3Multimodal(const ConfigReader& config) {
  if (!config.Has("text_config")) config.Refuse("text_config", "the language model's configuration is wanted");
  const ConfigReader text = config.Object("text_config");
  if (text.Text("model_type", "gemma3_text") != "gemma3_text") text.Refuse("model_type", "gemma3_text is wanted");
  LlamaNames names = SandwichNames(text);
  return {ReadGemma3Config(text), [names](const DecoderConfig& decoder, WeightTaker& take) mutable {
            names.prefix = "language_model.model.";
            names.head = "language_model.lm_head.weight";
            // As some versions of transformers write it.
            const char* renamed = "model.language_model.";
            if (take.Has(std::string(renamed) + "embed_tokens.weight")) {
              names.prefix = renamed;
              names.head = "lm_head.weight";
            }
            // Images need what stands beside the language model, text does not.
            take.IgnoreIf([&](const std::string& name) {
              return name != names.head &&
                     !absl::StartsWith(name, names.prefix == renamed ? renamed : "language_model.");
            });
            return TakeLlamaWeights(decoder, names, take);
          }};
}

}  // namespace hookline
