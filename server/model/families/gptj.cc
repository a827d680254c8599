// GPT-J: attention and MLP in parallel after one norm; the first values of each head are rotated, in adjacent pairs.
#include <cmath>
#include <string>
#include <utility>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/gpt_weights.h"

namespace hookline {
namespace {

DecoderWeights TakeWeights(const DecoderConfig& config, WeightTaker& take) {
  return TakeGptWeights(config, {"attn.", Bias::kNone, "mlp.fc_in", "mlp.fc_out"}, take);
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
  if (!config.Flag("scale_attn_weights", true)) config.Refuse("scale_attn_weights", "only true is supported");
  if (!config.Flag("rotary", true)) config.Refuse("rotary", "only true is supported");
  RotaryConfig rotary;
  rotary.pairs = RotaryConfig::Pairs::kAdjacent;
  rotary.dims = config.Integer("rotary_dim", 64, attention.head_width);
  if (rotary.dims % 2 != 0) config.Refuse("rotary_dim", "expected an even number");
  // The base is always 10000. Some files name their own type of rotation.
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
