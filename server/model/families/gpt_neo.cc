// GPT-Neo and the TinyStories models: GPT-2's blocks with windows on every other layer and scores that are not divided.
#include <string>
#include <utility>
#include <variant>
#include <vector>

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
  weights.position_embedding = take.Table(prefix + "wpe.weight", {config.context_length, d});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string block = absl::StrCat(prefix, "h.", i, "."), self = block + "attn.attention.";
    const int64_t hidden = std::get<DenseConfig>(config.layers[i].feed_forward).width;
    SoftmaxAttentionWeights attention;
    attention.query = TakeLinear(take, self + "q_proj", d, d, Bias::kNone);
    attention.key = TakeLinear(take, self + "k_proj", d, d, Bias::kNone);
    attention.value = TakeLinear(take, self + "v_proj", d, d, Bias::kNone);
    attention.out = TakeLinear(take, self + "out_proj", d, d, Bias::kThere);
    DenseWeights mlp;
    mlp.up = TakeLinear(take, block + "mlp.c_fc", d, hidden, Bias::kThere);
    mlp.down = TakeLinear(take, block + "mlp.c_proj", hidden, d, Bias::kThere);
    LayerWeights layer;
    layer.ln1 = TakeLayerNorm(take, block + "ln_1", d);
    layer.ln2 = TakeLayerNorm(take, block + "ln_2", d);
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

Architecture ReadGptNeo(const ConfigReader& config) {
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  decoder.vocabulary_size = config.Integer("vocab_size");
  decoder.context_length = config.Integer("max_position_embeddings", 2048);
  decoder.position_embedding = true;
  decoder.ln1 = {NormConfig::Kind::kLayer, config.Number("layer_norm_epsilon", 1e-5), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  SoftmaxAttentionConfig attention;
  attention.heads = attention.key_value_heads = config.Integer("num_heads");
  attention.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_heads", attention.heads);
  const DenseConfig mlp{config.Integer("intermediate_size", 4 * decoder.width),
                        ReadActivation(config, "activation_function", "gelu_new"), /*gated=*/false};
  const int64_t layers = config.Integer("num_layers", std::nullopt, kMaxLayers);
  config.Agree("num_attention_heads", static_cast<double>(attention.heads), "num_heads");
  config.Agree("num_hidden_layers", static_cast<double>(layers), "num_layers");

  const std::vector<std::string> kinds = config.RepeatedTexts("attention_types", kMaxLayers);
  if (static_cast<int64_t>(kinds.size()) != layers) {
    config.Fail(absl::StrCat("attention_types spells out ", kinds.size(), " layers, but num_layers is ", layers));
    return {};
  }
  if (config.Has("attention_layers") && config.Texts("attention_layers") != kinds) {
    config.Refuse("attention_layers", "but attention_types spells out other kinds, and both mean the same");
  }
  const int64_t window = config.Integer("window_size", 256);
  for (const std::string& kind : kinds) {
    if (kind != "global" && kind != "local") {
      config.Fail(absl::StrCat("attention_types has \"", kind.substr(0, 80), "\"; global and local are computed"));
    }
    attention.reach = kind == "local" ? window - 1 : -1;
    decoder.layers.push_back({attention, mlp});
  }
  return {std::move(decoder), TakeWeights};
}

}  // namespace hookline
