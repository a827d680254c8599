// gpt-oss: windows on every other layer, sinks beside the scores, and experts whose gate and up projections alternate
// and are clamped. Published checkpoints store the experts as MXFP4.
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/mxfp4.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

// Takes the matrices (E, in, out) of all experts, either plain or from MXFP4, which is stored as (E, out, in).
at::Tensor TakeMatrices(LlamaTaker& llama, const std::string& name, int64_t experts, int64_t in, int64_t out) {
  if (!llama.take.Has(name + "_blocks")) return llama.take.Get(name, {experts, in, out});
  const int64_t groups = in / kMxfp4Group;
  const at::Tensor scales = llama.take.Bytes(name + "_scales", {experts, out, groups});
  const at::Tensor values =
      llama.take.Decoded(name + "_blocks", {experts, out, groups, kMxfp4GroupBytes}, {experts, out, in},
                         [&](int64_t begin, absl::Span<const uint8_t> blocks, at::Tensor& decoded) {
                           DecodeMxfp4(begin, blocks, scales, decoded);
                         });
  return values.defined() ? values.transpose(1, 2) : values;
}

FeedForwardWeights TakeExperts(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  const auto& config = std::get<ExpertsConfig>(layer.feed_forward);
  const int64_t d = llama.width(), experts = config.experts, width = config.width;
  const std::string all = prefix + "mlp.experts.";
  ExpertsWeights weights;
  weights.router = llama.Linear(prefix + "mlp.router", d, experts, /*bias=*/true);
  const at::Tensor gate_up = TakeMatrices(llama, all + "gate_up_proj", experts, d, 2 * width);
  const at::Tensor gate_up_bias = llama.take.Get(all + "gate_up_proj_bias", {experts, 2 * width});
  const at::Tensor down = TakeMatrices(llama, all + "down_proj", experts, width, d);
  const at::Tensor down_bias = llama.take.Get(all + "down_proj_bias", {experts, d});
  if (!gate_up.defined() || !gate_up_bias.defined() || !down.defined() || !down_bias.defined()) return weights;
  for (int64_t j = 0; j < experts; ++j) {
    ExpertWeights expert;
    expert.gate_up = {gate_up[j], gate_up_bias[j]};
    expert.apart.down = {down[j], down_bias[j]};
    weights.experts.push_back(std::move(expert));
  }
  return weights;
}

AttentionWeights TakeAttention(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  const auto& config = std::get<SoftmaxAttentionConfig>(layer.attention);
  SoftmaxAttentionWeights weights = llama.Attention(config, prefix);
  weights.sinks = llama.take.Wide(prefix + "self_attn.sinks", {config.heads});
  return weights;
}

ExpertsConfig ReadExperts(const ConfigReader& config) {
  ExpertsConfig mixture;
  mixture.experts = config.Integer("num_local_experts", 128);
  mixture.chosen = config.Integer("num_experts_per_tok", 4, mixture.experts);
  mixture.width = config.Integer("intermediate_size", 2880);
  mixture.routing = ExpertsConfig::Routing::kSoftmaxOfChosen;
  mixture.limit = config.Number("swiglu_limit", 7);
  mixture.sharpness = config.Number("swiglu_alpha", 1.702);
  // These are the names of the original release.
  config.Agree("num_experts", static_cast<double>(mixture.experts), "num_local_experts");
  config.Agree("experts_per_token", static_cast<double>(mixture.chosen), "num_experts_per_tok");
  if (config.Has("quantization_config") && (config.Integer("hidden_size") % kMxfp4Group != 0 ||
                                            config.Integer("intermediate_size", 2880) % kMxfp4Group != 0)) {
    config.Refuse("hidden_size", absl::StrCat("MXFP4 needs it and intermediate_size to be multiples of ", kMxfp4Group));
  }
  return mixture;
}

}  // namespace

Architecture ReadGptOss(const ConfigReader& config) {
  ShapeDefaults defaults;
  if (!config.IsNull("num_key_value_heads")) defaults.key_value_heads = 8;
  if (!config.IsNull("head_dim")) defaults.head_width = 64;
  defaults.mlp_width = 2880;
  defaults.context_length = 131072;
  defaults.epsilon = 1e-5;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  if (std::get<DenseConfig>(decoder.layers.front().feed_forward).activation != Activation::kSilu) {
    config.Refuse("hidden_act", "only silu is supported");
  }
  RotaryDefaults rotary;
  rotary.base = 1.5e5;
  rotary.context_length = decoder.context_length;
  if (!config.Has("rope_parameters") && !config.Has("rope_scaling")) {
    config.Refuse("rope_scaling", "expected yarn parameters, since gpt-oss scales its rotation");
  }
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  ReadWindows(
      config, ReadWindow(config, 128), [](int layer) { return layer % 2 == 0; }, &decoder);
  ForEachAttention(&decoder, [](int, SoftmaxAttentionConfig& one) { one.sinks = true; });
  const ExpertsConfig mixture = ReadExperts(config);
  for (LayerConfig& layer : decoder.layers) layer.feed_forward = mixture;
  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kWide;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", true);
  names.attention = TakeAttention;
  names.feed_forward = TakeExperts;
  return WithLlamaNames(std::move(decoder), std::move(names));
}

}  // namespace hookline
