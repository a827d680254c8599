// SmolLM 3: Llama without rotation on every fourth layer.
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {

Architecture ReadSmolLm3(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.heads = 16;
  if (!config.IsNull("num_key_value_heads")) defaults.key_value_heads = 4;
  defaults.context_length = 32768;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  RotaryDefaults rotary;
  rotary.base = 2e6;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};

  // Despite the name, 1 means that the layer rotates.
  const int64_t interval = config.Integer("no_rope_layer_interval", 4);
  std::vector<int64_t> rotates;
  for (size_t i = 0; i < decoder.layers.size(); ++i) rotates.push_back(static_cast<int64_t>(i + 1) % interval != 0);
  if (config.Has("no_rope_layers")) rotates = config.Counts("no_rope_layers");
  if (rotates.size() != decoder.layers.size()) {
    config.Fail(absl::StrCat("no_rope_layers has ", rotates.size(), " entries, but num_hidden_layers is ",
                             decoder.layers.size()));
    return {};
  }
  ForEachAttention(&decoder, [&](int i, SoftmaxAttentionConfig& one) { one.rotary = rotates[i] != 0 ? 0 : -1; });
  std::optional<int64_t> window;
  if (config.Flag("use_sliding_window", false)) window = ReadWindow(config, std::nullopt);
  ReadWindows(
      config, window, [&](int layer) { return window.has_value() && rotates[layer] == 0; }, &decoder);
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.mlp_bias = config.Flag("mlp_bias", false);
  return WithLlamaNames(std::move(decoder), std::move(names));
}

}  // namespace hookline
