// Qwen 3.5, dense and with experts: three of four layers run the gated delta rule, the fourth has softmax attention
// with a gate on its output. Published checkpoints also hold a vision tower and heads that predict several tokens
// (`mtp.`), which text does not need.
#include <cmath>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

GatedDeltaConfig ReadGatedDelta(const ConfigReader& config, const NormConfig& norm) {
  GatedDeltaConfig delta;
  delta.key_heads = config.Integer("linear_num_key_heads", 16);
  delta.value_heads = config.Integer("linear_num_value_heads", 32);
  delta.key_width = config.Integer("linear_key_head_dim", 128);
  delta.value_width = config.Integer("linear_value_head_dim", 128);
  delta.kernel = config.Integer("linear_conv_kernel_dim", 4);
  delta.norm = norm;
  if (delta.value_heads % delta.key_heads != 0) {
    config.Refuse("linear_num_value_heads",
                  absl::StrCat("expected a multiple of linear_num_key_heads ", delta.key_heads));
  }
  return delta;
}

// Reads each layer's attention from `layer_types`; by default the last of every `full_attention_interval`
// layers is full.
void ReadLayerKinds(const ConfigReader& config, DecoderConfig* decoder) {
  const GatedDeltaConfig delta = ReadGatedDelta(config, decoder->ln1);
  const std::vector<std::string> types = LayerTypes(config, decoder->layers.size());
  const int64_t interval = config.Integer("full_attention_interval", 4);
  for (size_t i = 0; i < decoder->layers.size(); ++i) {
    const std::string fallback = static_cast<int64_t>(i + 1) % interval == 0 ? "full_attention" : "linear_attention";
    const std::string& type = types.empty() ? fallback : types[i];
    if (type == "linear_attention") {
      decoder->layers[i].attention = delta;
    } else if (type != "full_attention") {
      config.Fail(absl::StrCat("layer_types[", i, "] is \"", type.substr(0, 80),
                               "\"; full_attention and linear_attention are supported"));
    }
  }
}

DecoderConfig ReadShape(const ConfigReader& config, int64_t key_value_heads, std::optional<int64_t> mlp_width) {
  ShapeDefaults defaults;
  defaults.heads = 16;
  defaults.key_value_heads = key_value_heads;
  defaults.head_width = 256;
  defaults.mlp_width = mlp_width;
  defaults.vocabulary_size = 248320;
  defaults.context_length = 32768;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  RotaryDefaults rotary;
  rotary.share_key = "partial_rotary_factor";
  rotary.share = 0.25;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  if (!config.Flag("attn_output_gate", true)) config.Refuse("attn_output_gate", "only true is supported");
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) {
    one.query_key_norm.norm = decoder.ln1;
    one.gated = true;
  });
  ReadLayerKinds(config, &decoder);
  return decoder;
}

// `prefix` ends with "linear_attn.".
GatedDeltaWeights TakeGatedDelta(LlamaTaker& llama, const GatedDeltaConfig& delta, const std::string& prefix) {
  const int64_t d = llama.width(), values = delta.value_heads * delta.value_width;
  const int64_t channels = 2 * delta.key_heads * delta.key_width + values;
  const auto linear = [&](const char* name, int64_t in, int64_t out) {
    return llama.Linear(prefix + name, in, out, /*bias=*/false);
  };
  GatedDeltaWeights weights;
  weights.query_key_value = linear("in_proj_qkv", d, channels);
  weights.gate = linear("in_proj_z", d, values);
  weights.write = linear("in_proj_b", d, delta.value_heads);
  weights.decay = linear("in_proj_a", d, delta.value_heads);
  weights.decay_bias = llama.take.Wide(prefix + "dt_bias", {delta.value_heads});
  weights.log_decay_rate = llama.take.Wide(prefix + "A_log", {delta.value_heads});
  weights.convolution = llama.take.Wide(prefix + "conv1d.weight", {channels, 1, delta.kernel});
  if (weights.convolution.defined()) weights.convolution = weights.convolution.squeeze(1);
  // Unlike the family's other norms, this one multiplies by w.
  weights.norm.weight = llama.take.Wide(prefix + "norm.weight", {delta.value_width});
  weights.out = linear("out_proj", values, d);
  return weights;
}

AttentionWeights TakeAttention(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  if (const auto* delta = std::get_if<GatedDeltaConfig>(&layer.attention)) {
    return TakeGatedDelta(llama, *delta, prefix + "linear_attn.");
  }
  return llama.Attention(std::get<SoftmaxAttentionConfig>(layer.attention), prefix);
}

FeedForwardWeights TakeFeedForward(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  const std::string mlp = prefix + "mlp.";
  const auto* experts = std::get_if<ExpertsConfig>(&layer.feed_forward);
  if (experts == nullptr) return llama.Mlp(std::get<DenseConfig>(layer.feed_forward).width, mlp);
  ExpertsWeights weights = llama.Experts(*experts, mlp, {});
  weights.shared = llama.Mlp(experts->shared_width, mlp + "shared_expert.");
  weights.shared_gate = llama.Linear(mlp + "shared_expert_gate", llama.width(), 1, /*bias=*/false);
  return weights;
}

Architecture WithNames(const ConfigReader& config, DecoderConfig decoder) {
  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kOnePlus;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.attention = TakeAttention;
  names.feed_forward = TakeFeedForward;
  return {std::move(decoder),
          [names](const DecoderConfig& made, WeightTaker& take) mutable {
            const std::string beside_vision = "model.language_model.";
            if (take.Has(beside_vision + "embed_tokens.weight")) names.prefix = beside_vision;
            return LlamaTaker(made, names, take).All();
          },
          [](const std::string& name) {
            return absl::StartsWith(name, "mtp.") || absl::StartsWith(name, "model.visual.");
          }};
}

}  // namespace

Architecture ReadQwen35(const ConfigReader& config) {
  const ConfigReader text = config.Has("text_config") ? TextConfig(config, "qwen3_5_text") : config;
  return WithNames(text, ReadShape(text, /*key_value_heads=*/4, /*mlp_width=*/std::nullopt));
}

Architecture ReadQwen35Moe(const ConfigReader& config) {
  const ConfigReader text = config.Has("text_config") ? TextConfig(config, "qwen3_5_moe_text") : config;
  ExpertsConfig mixture;
  mixture.width = text.Integer("moe_intermediate_size", 512);
  DecoderConfig decoder = ReadShape(text, /*key_value_heads=*/2, /*mlp_width=*/mixture.width);
  mixture.activation = std::get<DenseConfig>(decoder.layers.front().feed_forward).activation;
  mixture.experts = text.Integer("num_experts", 256);
  mixture.chosen = text.Integer("num_experts_per_tok", 8, mixture.experts);
  mixture.renormalized = true;
  mixture.shared_width = text.Integer("shared_expert_intermediate_size", 512);
  mixture.shared_gated = true;
  for (LayerConfig& layer : decoder.layers) layer.feed_forward = mixture;
  return WithNames(text, std::move(decoder));
}

}  // namespace hookline
