// OPT: learned positions that begin at row 2, and LayerNorm before the sublayers. The 350M size has its norms after the
// residual sums, and an embedding that is narrower than the residual stream.
#include <cmath>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/take_layers.h"

namespace hookline {
namespace {

// The row of position 0 in the position table.
constexpr int64_t kPositionOffset = 2;
constexpr double kEpsilon = 1e-5;

NormWeights TakeNorm(WeightTaker& take, const NormConfig& norm, const std::string& name, int64_t width) {
  return norm.weighted ? TakeLayerNorm(take, name, width) : NormWeights{};
}

LayerWeights TakeLayer(const DecoderConfig& config, size_t i, Bias bias, const std::string& block, WeightTaker& take) {
  const int64_t d = config.width, hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
  SoftmaxAttentionWeights attention;
  attention.query = TakeLinear(take, block + "self_attn.q_proj", d, d, bias);
  attention.key = TakeLinear(take, block + "self_attn.k_proj", d, d, bias);
  attention.value = TakeLinear(take, block + "self_attn.v_proj", d, d, bias);
  attention.out = TakeLinear(take, block + "self_attn.out_proj", d, d, bias);
  DenseWeights mlp;
  mlp.up = TakeLinear(take, block + "fc1", d, hidden, bias);
  mlp.down = TakeLinear(take, block + "fc2", hidden, d, bias);
  LayerWeights layer;
  layer.ln1 = TakeNorm(take, config.ln1, block + "self_attn_layer_norm", d);
  layer.ln2 = TakeNorm(take, config.ln2, block + "final_layer_norm", d);
  layer.attention = std::move(attention);
  layer.feed_forward = std::move(mlp);
  return layer;
}

DecoderWeights TakeWeights(const DecoderConfig& config, Bias bias, WeightTaker& take) {
  const int64_t d = config.width, table_width = config.embedding_width == 0 ? d : config.embedding_width;
  const std::string prefix = take.Has("decoder.embed_tokens.weight") ? "decoder." : "model.decoder.";
  DecoderWeights weights;
  weights.token_embedding = take.Table(prefix + "embed_tokens.weight", {config.vocabulary_size, table_width});
  const at::Tensor positions =
      take.Table(prefix + "embed_positions.weight", {config.context_length + kPositionOffset, d});
  if (positions.defined()) weights.position_embedding = positions.narrow(0, kPositionOffset, config.context_length);
  if (config.embedding_width != 0) {
    weights.embedding_projection = TakeLinear(take, prefix + "project_in", table_width, d, Bias::kNone);
    if (take.evaluates()) {
      weights.unembedding_projection = TakeLinear(take, prefix + "project_out", d, table_width, Bias::kNone);
    } else {
      take.Ignore(prefix + "project_out.weight", {table_width, d});
    }
  }
  for (size_t i = 0; i < config.layers.size(); ++i) {
    weights.layers.push_back(TakeLayer(config, i, bias, absl::StrCat(prefix, "layers.", i, "."), take));
  }
  if (config.ln_final.kind != NormConfig::Kind::kNone) {
    weights.ln_final = TakeNorm(take, config.ln_final, prefix + "final_layer_norm", d);
  }
  TakeHead(take, "lm_head", prefix + "embed_tokens.weight", config, table_width, &weights);
  return weights;
}

}  // namespace

Architecture ReadOpt(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  const int64_t table_width = config.Integer("word_embed_proj_dim", decoder.width);
  if (table_width != decoder.width) decoder.embedding_width = table_width;
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("max_position_embeddings", 2048);
  decoder.position_embedding = true;
  decoder.ln1 = {NormConfig::Kind::kLayer, kEpsilon, config.Flag("layer_norm_elementwise_affine", true)};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  const bool norms_before = config.Flag("do_layer_norm_before", true);
  if (!norms_before) decoder.arrangement = DecoderConfig::Arrangement::kPostNorm;
  if (!norms_before || config.Flag("_remove_final_layer_norm", false)) decoder.ln_final = NormConfig{};
  SoftmaxAttentionConfig attention;
  attention.heads = attention.key_value_heads = config.Integer("num_attention_heads");
  attention.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_attention_heads", attention.heads);
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  const DenseConfig mlp{config.Integer("ffn_dim"), ReadActivation(config, "activation_function", "relu"),
                        /*gated=*/false};
  decoder.layers.assign(static_cast<size_t>(config.Integer("num_hidden_layers", std::nullopt, kMaxLayers)),
                        LayerConfig{attention, mlp});
  const Bias bias = BiasIf(config.Flag("enable_bias", true));
  return {std::move(decoder),
          [bias](const DecoderConfig& made, WeightTaker& take) { return TakeWeights(made, bias, take); }};
}

}  // namespace hookline
