// DeepSeek V3 and R1: latent attention; after the first layers, experts in groups, with a shared expert. Layers beyond
// num_hidden_layers predict further tokens and are not needed here.
#include <cmath>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

// The epsilon of the norms over compressed rows, independent of rms_norm_eps.
constexpr double kRankEpsilon = 1e-6;

LatentAttentionConfig ReadAttention(const ConfigReader& config, const DecoderConfig& decoder,
                                    const RotaryConfig& rotary) {
  LatentAttentionConfig attention;
  attention.heads = std::get<SoftmaxAttentionConfig>(decoder.layers.front().attention).heads;
  config.Agree("num_key_value_heads", static_cast<double>(attention.heads), "num_attention_heads");
  if (!config.IsNull("q_lora_rank")) attention.query_rank = config.Integer("q_lora_rank", 1536);
  attention.key_value_rank = config.Integer("kv_lora_rank", 512);
  attention.plain_width = config.Integer("qk_nope_head_dim", 128);
  attention.rotated_width = rotary.dims;
  attention.value_width = config.Integer("v_head_dim", 128);
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.plain_width + attention.rotated_width));
  attention.rank_norm = {NormConfig::Kind::kRms, kRankEpsilon, /*weighted=*/true};
  const ConfigReader parameters = config.Object("rope_parameters");
  const ConfigReader rope = parameters.empty() ? config.Object("rope_scaling") : parameters;
  const double mscale = rope.NumberFrom0("mscale_all_dim", 0);
  if (rotary.scaling != RotaryConfig::Scaling::kNone && mscale != 0) {
    const double magnitude = YarnMagnitude(rotary.factor, mscale);
    attention.scale *= magnitude * magnitude;
  }
  return attention;
}

ExpertsConfig ReadExperts(const ConfigReader& config, Activation activation) {
  ExpertsConfig mixture;
  mixture.experts = config.Integer("n_routed_experts", 256);
  config.Agree("num_local_experts", static_cast<double>(mixture.experts), "n_routed_experts");
  mixture.chosen = config.Integer("num_experts_per_tok", 8, mixture.experts);
  mixture.width = config.Integer("moe_intermediate_size", 2048);
  mixture.routing = ExpertsConfig::Routing::kSigmoid;
  mixture.renormalized = config.Flag("norm_topk_prob", true);
  mixture.weight_factor = config.Number("routed_scaling_factor", 2.5);
  mixture.groups = config.Integer("n_group", 8);
  mixture.chosen_groups = config.Integer("topk_group", 4, mixture.groups);
  mixture.activation = activation;
  mixture.shared_width = mixture.width * config.Count("n_shared_experts", 1);
  const int64_t in_group = mixture.experts / mixture.groups;
  if (mixture.experts % mixture.groups != 0 || in_group < 2) {
    config.Refuse("n_group", absl::StrCat("expected groups of equal size, each with at least two of the ",
                                          mixture.experts, " experts"));
  }
  if (mixture.chosen > mixture.chosen_groups * in_group) {
    config.Refuse("num_experts_per_tok", absl::StrCat("expected at most ", mixture.chosen_groups * in_group,
                                                      ", the number in topk_group groups"));
  }
  if (config.Text("scoring_func", "sigmoid") != "sigmoid") config.Refuse("scoring_func", "only sigmoid is supported");
  if (config.Text("topk_method", "noaux_tc") != "noaux_tc") config.Refuse("topk_method", "only noaux_tc is supported");
  if (config.Integer("moe_layer_freq", 1) != 1) config.Refuse("moe_layer_freq", "only 1 is supported");
  return mixture;
}

AttentionWeights TakeAttention(LlamaTaker& llama, const LatentAttentionConfig& config, const std::string& self,
                               bool bias) {
  const int64_t d = llama.width(), rank = config.key_value_rank;
  const int64_t queries = config.heads * (config.plain_width + config.rotated_width);
  LatentAttentionWeights weights;
  if (config.query_rank > 0) {
    weights.query_down = llama.Linear(self + "q_a_proj", d, config.query_rank, bias);
    weights.query_norm = llama.Norm(self + "q_a_layernorm", config.query_rank);
    weights.query_up = llama.Linear(self + "q_b_proj", config.query_rank, queries, /*bias=*/false);
  } else {
    weights.query_up = llama.Linear(self + "q_proj", d, queries, /*bias=*/false);
  }
  weights.key_value_down = llama.Linear(self + "kv_a_proj_with_mqa", d, rank + config.rotated_width, bias);
  weights.key_value_norm = llama.Norm(self + "kv_a_layernorm", rank);
  weights.key_value_up =
      llama.Linear(self + "kv_b_proj", rank, config.heads * (config.plain_width + config.value_width), /*bias=*/false);
  weights.out = llama.Linear(self + "o_proj", config.heads * config.value_width, d, bias);
  return weights;
}

FeedForwardWeights TakeFeedForward(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  const std::string mlp = prefix + "mlp.";
  const auto* experts = std::get_if<ExpertsConfig>(&layer.feed_forward);
  if (experts == nullptr) return llama.Mlp(std::get<DenseConfig>(layer.feed_forward).width, mlp);
  ExpertsWeights weights = llama.Experts(*experts, mlp, {});
  // The router computes in float32 in every dtype of the model.
  const at::Tensor router = llama.take.Wide(mlp + "gate.weight", {experts->experts, llama.width()});
  if (router.defined()) weights.router.weight = router.t();
  weights.correction = llama.take.Wide(mlp + "gate.e_score_correction_bias", {experts->experts});
  if (experts->shared_width > 0) weights.shared = llama.Mlp(experts->shared_width, mlp + "shared_experts.");
  return weights;
}

// Returns whether `name` belongs to layer number `layers` or a later one.
bool IsBeyond(absl::string_view name, size_t layers) {
  int64_t layer = -1;
  return absl::ConsumePrefix(&name, "model.layers.") &&
         absl::SimpleAtoi(*absl::StrSplit(name, absl::MaxSplits('.', 1)).begin(), &layer) &&
         layer >= static_cast<int64_t>(layers);
}

}  // namespace

Architecture ReadDeepseekV3(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.head_width = config.Integer("qk_rope_head_dim", 64);
  defaults.context_length = 4096;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  RotaryDefaults rotary;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, *defaults.head_width, rotary)};
  if (config.Flag("rope_interleave", true)) decoder.rotary[0].pairs = RotaryConfig::Pairs::kInterleaved;
  const LatentAttentionConfig attention = ReadAttention(config, decoder, decoder.rotary[0]);
  const ExpertsConfig mixture =
      ReadExperts(config, std::get<DenseConfig>(decoder.layers.front().feed_forward).activation);
  const size_t first = static_cast<size_t>(config.Count("first_k_dense_replace", 3));
  for (size_t i = 0; i < decoder.layers.size(); ++i) {
    decoder.layers[i].attention = attention;
    if (i >= first) decoder.layers[i].feed_forward = mixture;
  }
  LlamaNames names;
  const bool bias = config.Flag("attention_bias", false);
  names.attention = [bias](LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
    return TakeAttention(llama, std::get<LatentAttentionConfig>(layer.attention), prefix + "self_attn.", bias);
  };
  names.feed_forward = TakeFeedForward;
  Architecture architecture = WithLlamaNames(std::move(decoder), std::move(names));
  const size_t layers = architecture.config.layers.size();
  architecture.is_beside = [layers](const std::string& name) { return IsBeyond(name, layers); };
  return architecture;
}

}  // namespace hookline
