// GPT-J: attention and MLP in parallel after one norm, rotation of the first values of each head in adjacent pairs.
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

DecoderWeights TakeWeights(const DecoderConfig& config, WeightTaker& take) {
  const int64_t d = config.width;
  const std::string prefix = take.Has("wte.weight") ? "" : "transformer.";
  DecoderWeights weights;
  weights.token_embedding = take.Table(prefix + "wte.weight", {config.vocabulary_size, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat(prefix, "h.", i, "."), self = block + "attn.";
    const int64_t hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
    SoftmaxAttentionWeights attention;
    attention.query = TakeLinear(take, self + "q_proj", d, d, Bias::kNone);
    attention.key = TakeLinear(take, self + "k_proj", d, d, Bias::kNone);
    attention.value = TakeLinear(take, self + "v_proj", d, d, Bias::kNone);
    attention.out = TakeLinear(take, self + "out_proj", d, d, Bias::kNone);
    DenseWeights mlp;
    mlp.up = TakeLinear(take, block + "mlp.fc_in", d, hidden, Bias::kThere);
    mlp.down = TakeLinear(take, block + "mlp.fc_out", hidden, d, Bias::kThere);
    LayerWeights layer;
    layer.ln1 = TakeLayerNorm(take, block + "ln_1", d);
    layer.attention = std::move(attention);
    layer.feed_forward = std::move(mlp);
    // The masks that old files hold.
    for (const char* buffer : {"bias", "masked_bias"}) take.Ignore(self + buffer);
    weights.layers.push_back(std::move(layer));
  }
  weights.ln_final = TakeLayerNorm(take, prefix + "ln_f", d);
  TakeHead(take, "lm_head", config, d, &weights);
  return weights;
}

}  // namespace

Architecture ReadGptj(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("n_embd");
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("n_positions", 2048);
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_epsilon", 1e-5), /*weighted=*/true};
  decoder.ln_final = decoder.ln1;
  decoder.arrangement = DecoderConfig::Arrangement::kParallel;
  SoftmaxAttentionConfig attention;
  attention.heads = attention.key_value_heads = config.Integer("n_head");
  attention.head_width = HeadWidth(config, "n_embd", decoder.width, "n_head", attention.heads);
  attention.rotary = 0;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  if (!config.Flag("scale_attn_weights", true)) config.Refuse("scale_attn_weights", "only true is computed");
  if (!config.Flag("rotary", true)) config.Refuse("rotary", "only true is computed");
  RotaryConfig rotary;
  rotary.pairs = RotaryConfig::Pairs::kAdjacent;
  rotary.dims = config.Integer("rotary_dim", 64, attention.head_width);
  if (rotary.dims % 2 != 0) config.Refuse("rotary_dim", "an even number is wanted");
  // The base is always 10000, and some files name their own kind of rotation.
  config.Agree("rope_theta", rotary.base, "this family");
  const ConfigReader scaling = config.Object("rope_scaling");
  const std::string type = scaling.Text("rope_type", "gptj");
  if (type != "gptj" && type != "default") scaling.Refuse("rope_type", "this family's rotation is not scaled");
  decoder.rotary = {rotary};
  const DenseConfig mlp{config.Integer("n_inner", 4 * decoder.width),
                        ReadActivation(config, "activation_function", "gelu_new"), /*gated=*/false};
  const int64_t layers = config.Integer("n_layer", std::nullopt, kMaxLayers);
  AgreeWithAliases(config, decoder, attention.heads, layers);
  decoder.layers.assign(static_cast<size_t>(layers), LayerConfig{attention, mlp});
  return {std::move(decoder), TakeWeights};
}

}  // namespace hookline
