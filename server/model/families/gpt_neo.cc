// GPT-Neo and the TinyStories models: GPT-2's blocks, with windows on every other layer and unscaled scores.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/gpt_weights.h"

namespace hookline {
namespace {

DecoderWeights TakeWeights(const DecoderConfig& config, WeightTaker& take) {
  return TakeGptWeights(config, {"attn.attention.", Bias::kThere, "mlp.c_fc", "mlp.c_proj"}, take);
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
    config.Fail(absl::StrCat("attention_types lists ", kinds.size(), " layers, but num_layers is ", layers));
    return {};
  }
  if (config.Has("attention_layers") && config.Texts("attention_layers") != kinds) {
    config.Refuse("attention_layers", "but attention_types lists other kinds, and both mean the same");
  }
  const int64_t window = config.Integer("window_size", 256);
  for (const std::string& kind : kinds) {
    if (kind != "global" && kind != "local") {
      config.Fail(absl::StrCat("attention_types has \"", kind.substr(0, 80), "\"; global and local are supported"));
    }
    attention.reach = kind == "local" ? window - 1 : -1;
    decoder.layers.push_back({attention, mlp});
  }
  return {std::move(decoder), TakeWeights};
}

}  // namespace hookline
