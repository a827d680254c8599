// Qwen 3 MoE, Mixtral and OLMoE: Llama's blocks with a mixture of experts in place of the MLP.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

// Takes activation and width from the shape's MLP; `width_key` overrides the width.
ExpertsConfig ReadExperts(const ConfigReader& config, const DecoderConfig& decoder, const char* width_key,
                          int64_t experts, int64_t chosen) {
  const auto& mlp = std::get<DenseConfig>(decoder.layers.front().feed_forward);
  ExpertsConfig mixture;
  // transformers 5 writes num_local_experts for num_experts.
  const int64_t local = config.Integer("num_local_experts", experts);
  mixture.experts = config.Integer("num_experts", local);
  if (config.Has("num_local_experts")) {
    config.Agree("num_experts", static_cast<double>(local), "num_local_experts");
  }
  mixture.chosen = config.Integer("num_experts_per_tok", chosen, mixture.experts);
  mixture.width = width_key == nullptr ? mlp.width : config.Integer(width_key);
  mixture.activation = mlp.activation;
  return mixture;
}

RotaryConfig ReadOneRotary(const ConfigReader& config, DecoderConfig& decoder, double base) {
  RotaryDefaults rotary;
  rotary.base = base;
  rotary.context_length = decoder.context_length;
  return ReadRotary(config, FirstAttention(decoder).head_width, rotary);
}

}  // namespace

Architecture ReadQwen3Moe(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 32768;
  defaults.mlp_width = 6144;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.rotary = {ReadOneRotary(config, decoder, 10000)};
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) { one.query_key_norm.norm = decoder.ln1; });
  std::optional<int64_t> window;
  if (config.Flag("use_sliding_window", false)) window = ReadWindow(config, 4096);
  ReadWindows(
      config, window, [&](int) { return window.has_value(); }, &decoder);

  ExpertsConfig mixture = ReadExperts(config, decoder, "moe_intermediate_size", /*experts=*/128, /*chosen=*/8);
  mixture.renormalized = config.Flag("norm_topk_prob", false);
  const int64_t step = config.Integer("decoder_sparse_step", 1);
  std::vector<int64_t> dense;
  if (config.Has("mlp_only_layers")) dense = config.Counts("mlp_only_layers");
  for (size_t i = 0; i < decoder.layers.size(); ++i) {
    const bool is_dense = std::count(dense.begin(), dense.end(), static_cast<int64_t>(i)) > 0;
    if (!is_dense && static_cast<int64_t>(i + 1) % step == 0) decoder.layers[i].feed_forward = mixture;
  }
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  return WithLlamaNames(std::move(decoder), std::move(names));
}

Architecture ReadMixtral(const ConfigReader& config) {
  ShapeDefaults defaults;
  if (!config.IsNull("num_key_value_heads")) defaults.key_value_heads = 8;
  defaults.context_length = int64_t{4096} * 32;
  defaults.epsilon = 1e-5;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.rotary = {ReadOneRotary(config, decoder, 1e6)};
  const std::optional<int64_t> window = ReadWindow(config, std::nullopt);
  ReadWindows(
      config, window, [&](int) { return window.has_value(); }, &decoder);
  ExpertsConfig mixture = ReadExperts(config, decoder, /*width_key=*/nullptr, /*experts=*/8, /*chosen=*/2);
  mixture.renormalized = true;
  for (LayerConfig& layer : decoder.layers) layer.feed_forward = mixture;
  LlamaNames names;
  names.feed_forward = [](LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
    // transformers 5 can write Qwen's names instead.
    const std::string published = prefix + "block_sparse_moe.";
    const bool renamed = !llama.take.Has(published + "gate.weight") && llama.take.Has(prefix + "mlp.gate.weight");
    return llama.Experts(std::get<ExpertsConfig>(layer.feed_forward), renamed ? prefix + "mlp." : published,
                         renamed ? LlamaTaker::ExpertParts{} : LlamaTaker::ExpertParts{"w1", "w3", "w2"});
  };
  return WithLlamaNames(std::move(decoder), std::move(names));
}

Architecture ReadOlmoe(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 4096;
  defaults.epsilon = 1e-5;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.rotary = {ReadOneRotary(config, decoder, 10000)};
  const double clip = config.NumberFrom0("clip_qkv", 0);
  if (config.Has("clip_qkv") && clip == 0) config.Refuse("clip_qkv", "expected a positive number or null");
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) {
    one.query_key_norm = {decoder.ln1, QueryKeyNormConfig::Place::kBeforeRotary, QueryKeyNormConfig::Span::kAllHeads};
    one.clamp = clip;
  });
  ReadWindows(
      config, std::nullopt, [](int) { return false; }, &decoder);
  ExpertsConfig mixture = ReadExperts(config, decoder, /*width_key=*/nullptr, /*experts=*/64, /*chosen=*/8);
  mixture.renormalized = config.Flag("norm_topk_prob", false);
  for (LayerConfig& layer : decoder.layers) layer.feed_forward = mixture;
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  return WithLlamaNames(std::move(decoder), std::move(names));
}

}  // namespace hookline
