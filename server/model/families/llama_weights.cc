#include "server/model/families/llama_weights.h"

#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace hookline {

Architecture WithLlamaNames(DecoderConfig config, LlamaNames names) {
  return {std::move(config), [names = std::move(names)](const DecoderConfig& made, WeightTaker& take) {
            return LlamaTaker(made, names, take).All();
          }};
}

Architecture WithLlamaNamesBesideTowers(DecoderConfig config, LlamaNames names) {
  static constexpr char kPublished[] = "language_model.", kRenamed[] = "model.language_model.";
  const auto take_weights = [names = std::move(names)](const DecoderConfig& made, WeightTaker& take) {
    LlamaNames found = names;
    const bool is_renamed = take.Has(absl::StrCat(kRenamed, "embed_tokens.weight"));
    found.prefix = is_renamed ? kRenamed : "language_model.model.";
    found.head = is_renamed ? "lm_head" : "language_model.lm_head";
    return LlamaTaker(made, found, take).All();
  };
  return {std::move(config), take_weights, [](const std::string& name) {
            return !absl::StartsWith(name, kPublished) && !absl::StartsWith(name, kRenamed) && name != "lm_head.weight";
          }};
}

DecoderWeights LlamaTaker::All() {
  DecoderWeights weights;
  weights.token_embedding = take.Table(names_.prefix + "embed_tokens.weight", {config_.vocabulary_size, config_.width});
  for (int i = 0; i < static_cast<int>(config_.layers.size()); ++i) weights.layers.push_back(Layer(i));
  if (config_.ln_final.weighted) weights.ln_final = Norm(names_.prefix + "norm", config_.width);
  take.Ignore(names_.prefix + "rotary_emb.inv_freq");
  TakeHead(take, names_.head, names_.prefix + "embed_tokens.weight", config_, config_.width, &weights);
  return weights;
}

LayerWeights LlamaTaker::Layer(int layer) {
  const std::string prefix = absl::StrCat(names_.prefix, "layers.", layer, ".");
  const LayerConfig& config = config_.layers[layer];
  const auto norm_if = [&](const NormConfig& norm, const char* name) {
    return norm.weighted ? Norm(prefix + name, config_.width) : NormWeights{};
  };
  LayerWeights weights;
  weights.ln1 = norm_if(config_.ln1, names_.ln1);
  weights.ln1_post = norm_if(config_.ln1_post, names_.ln1_post);
  weights.ln2 = norm_if(config_.ln2, names_.ln2);
  weights.ln2_post = norm_if(config_.ln2_post, names_.ln2_post);
  if (names_.attention) {
    weights.attention = names_.attention(*this, config, prefix);
  } else {
    weights.attention = Attention(std::get<SoftmaxAttentionConfig>(config.attention), prefix);
  }
  if (names_.feed_forward) {
    weights.feed_forward = names_.feed_forward(*this, config, prefix);
  } else if (const auto* experts = std::get_if<ExpertsConfig>(&config.feed_forward)) {
    weights.feed_forward = Experts(*experts, prefix + "mlp.", {});
  } else {
    weights.feed_forward = Mlp(std::get<DenseConfig>(config.feed_forward).width, prefix + "mlp.");
  }
  if (names_.rest) names_.rest(*this, config, prefix, &weights);
  take.Ignore(prefix + "self_attn.rotary_emb.inv_freq");
  return weights;
}

NormWeights LlamaTaker::Norm(const std::string& name, int64_t width) {
  if (names_.norm_weight == LlamaNames::NormWeight::kRounded) return {take.Get(name + ".weight", {width}), {}};
  at::Tensor weight = take.Wide(name + ".weight", {width});
  if (names_.norm_weight == LlamaNames::NormWeight::kOnePlus && weight.defined()) weight = weight + 1;
  return {weight, {}};
}

SoftmaxAttentionWeights LlamaTaker::Attention(const SoftmaxAttentionConfig& attention, const std::string& prefix) {
  const int64_t d = config_.width, e = attention.head_width;
  const int64_t queries = attention.heads * e, keys = attention.key_value_heads * e;
  const std::string self = prefix + "self_attn.";
  const bool bias = names_.query_key_value_bias, projects_keys = attention.keys_from < 0;
  SoftmaxAttentionWeights weights;
  weights.query = Linear(self + "q_proj", d, attention.gated ? 2 * queries : queries, bias);
  if (projects_keys) weights.key = Linear(self + "k_proj", d, keys, bias);
  if (projects_keys && !attention.key_value) weights.value = Linear(self + "v_proj", d, keys, bias);
  weights.out = Linear(self + "o_proj", queries, d, names_.attention_out_bias);
  if (attention.query_key_norm.norm.weighted) {
    const bool per_head = attention.query_key_norm.span == QueryKeyNormConfig::Span::kHead;
    weights.query_norm = Norm(self + "q_norm", per_head ? e : queries);
    if (projects_keys) weights.key_norm = Norm(self + "k_norm", per_head ? e : keys);
  }
  return weights;
}

DenseWeights LlamaTaker::Mlp(int64_t width, const std::string& prefix) {
  const int64_t d = config_.width;
  DenseWeights weights;
  weights.gate = Linear(prefix + "gate_proj", d, width, names_.mlp_bias);
  weights.up = Linear(prefix + "up_proj", d, width, names_.mlp_bias);
  weights.down = Linear(prefix + "down_proj", width, d, names_.mlp_bias);
  return weights;
}

ExpertsWeights LlamaTaker::Experts(const ExpertsConfig& experts, const std::string& prefix, const ExpertParts& parts) {
  const int64_t d = config_.width, width = experts.width;
  ExpertsWeights weights;
  weights.router = Linear(prefix + "gate", d, experts.experts, /*bias=*/false);
  at::Tensor gate_up, down;
  const bool fused = take.Has(prefix + "experts.gate_up_proj");
  if (fused) {
    gate_up = take.Get(prefix + "experts.gate_up_proj", {experts.experts, 2 * width, d});
    down = take.Get(prefix + "experts.down_proj", {experts.experts, d, width});
    if (!gate_up.defined() || !down.defined()) return weights;
  }
  for (int64_t j = 0; j < experts.experts; ++j) {
    ExpertWeights expert;
    DenseWeights& apart = expert.apart;
    if (fused) {
      apart.gate.weight = gate_up[j].narrow(0, 0, width).t();
      apart.up.weight = gate_up[j].narrow(0, width, width).t();
      apart.down.weight = down[j].t();
    } else {
      const std::string one = absl::StrCat(prefix, "experts.", j, ".");
      apart.gate = Linear(one + parts.gate, d, width, /*bias=*/false);
      apart.up = Linear(one + parts.up, d, width, /*bias=*/false);
      apart.down = Linear(one + parts.down, width, d, /*bias=*/false);
    }
    weights.experts.push_back(std::move(expert));
  }
  return weights;
}

}  // namespace hookline
