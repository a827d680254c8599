// Phi 3 is Llama with fused projections and longrope. Phi 1 and 2 have parallel blocks with one norm.
#include <cmath>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"
#include "server/model/families/take_layers.h"

namespace hookline {
namespace {

AttentionWeights TakePhi3Attention(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  const auto& config = std::get<SoftmaxAttentionConfig>(layer.attention);
  const int64_t d = llama.width(), queries = config.heads * config.head_width;
  const int64_t keys = config.key_value_heads * config.head_width;
  const LinearWeights all = llama.Linear(prefix + "self_attn.qkv_proj", d, queries + 2 * keys, /*bias=*/false);
  SoftmaxAttentionWeights weights;
  weights.query = Outputs(all, 0, queries);
  weights.key = Outputs(all, queries, keys);
  weights.value = Outputs(all, queries + keys, keys);
  weights.out = llama.Linear(prefix + "self_attn.o_proj", queries, d, /*bias=*/false);
  return weights;
}

FeedForwardWeights TakePhi3Mlp(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
  const int64_t d = llama.width(), width = std::get<DenseConfig>(layer.feed_forward).width;
  const LinearWeights both = llama.Linear(prefix + "mlp.gate_up_proj", d, 2 * width, /*bias=*/false);
  DenseWeights weights;
  weights.gate = Outputs(both, 0, width);
  weights.up = Outputs(both, width, width);
  weights.down = llama.Linear(prefix + "mlp.down_proj", width, d, /*bias=*/false);
  return weights;
}

DecoderWeights TakePhiWeights(const DecoderConfig& config, WeightTaker& take) {
  const int64_t d = config.width;
  DecoderWeights weights;
  weights.token_embedding = take.Table("model.embed_tokens.weight", {config.vocabulary_size, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat("model.layers.", i, "."), self = block + "self_attn.";
    const auto& attention_config = std::get<SoftmaxAttentionConfig>(config.layers[i].attention);
    const int64_t e = attention_config.head_width, hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
    const int64_t queries = attention_config.heads * e, keys = attention_config.key_value_heads * e;
    SoftmaxAttentionWeights attention;
    attention.query = TakeLinear(take, self + "q_proj", d, queries, Bias::kThere);
    attention.key = TakeLinear(take, self + "k_proj", d, keys, Bias::kThere);
    attention.value = TakeLinear(take, self + "v_proj", d, keys, Bias::kThere);
    attention.out = TakeLinear(take, self + "dense", queries, d, Bias::kThere);
    if (attention_config.query_key_norm.norm.kind != NormConfig::Kind::kNone) {
      attention.query_norm = TakeLayerNorm(take, self + "q_layernorm", e);
      attention.key_norm = TakeLayerNorm(take, self + "k_layernorm", e);
    }
    DenseWeights mlp;
    mlp.up = TakeLinear(take, block + "mlp.fc1", d, hidden, Bias::kThere);
    mlp.down = TakeLinear(take, block + "mlp.fc2", hidden, d, Bias::kThere);
    LayerWeights layer;
    layer.ln1 = TakeLayerNorm(take, block + "input_layernorm", d);
    layer.attention = std::move(attention);
    layer.feed_forward = std::move(mlp);
    take.Ignore(self + "rotary_emb.inv_freq");
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeLayerNorm(take, "model.final_layernorm", d);
  TakeHead(take, "lm_head", "model.embed_tokens.weight", config, d, &weights);
  return weights;
}

}  // namespace

Architecture ReadPhi3(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.context_length = 4096;
  defaults.epsilon = 1e-5;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  RotaryDefaults rotary;
  rotary.share_key = "partial_rotary_factor";
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  if (decoder.rotary[0].scaling == RotaryConfig::Scaling::kYarn) {
    config.Fail(
        "rope_scaling is yarn, which transformers treats as longrope in this family; only longrope is supported");
  }
  const std::optional<int64_t> window = ReadWindow(config, std::nullopt);
  ReadWindows(
      config, window, [&](int) { return window.has_value(); }, &decoder);
  if (config.Flag("attention_bias", false)) config.Refuse("attention_bias", "this family's projections have no bias");
  LlamaNames names;
  names.attention = TakePhi3Attention;
  names.feed_forward = TakePhi3Mlp;
  return WithLlamaNames(std::move(decoder), std::move(names));
}

Architecture ReadPhi(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  SoftmaxAttentionConfig attention;
  attention.heads = config.Integer("num_attention_heads");
  attention.key_value_heads = config.Integer("num_key_value_heads", attention.heads);
  if (attention.heads % attention.key_value_heads != 0) {
    config.Refuse("num_attention_heads",
                  absl::StrCat("expected a multiple of num_key_value_heads ", attention.key_value_heads));
  }
  attention.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_attention_heads", attention.heads);
  attention.rotary = 0;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_eps", 1e-5), /*weighted=*/true};
  decoder.ln_final = decoder.ln1;
  decoder.arrangement = DecoderConfig::Arrangement::kParallel;
  if (config.Flag("qk_layernorm", false)) attention.query_key_norm.norm = decoder.ln1;
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("max_position_embeddings", 2048);
  RotaryDefaults rotary;
  rotary.share_key = "partial_rotary_factor";
  rotary.share = 0.5;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, attention.head_width, rotary)};
  const DenseConfig mlp{config.Integer("intermediate_size"), ReadActivation(config, "hidden_act", "gelu_new"),
                        /*gated=*/false};
  decoder.layers.assign(static_cast<size_t>(config.Integer("num_hidden_layers", std::nullopt, kMaxLayers)),
                        LayerConfig{attention, mlp});
  return {std::move(decoder), TakePhiWeights};
}

}  // namespace hookline
