#include "server/model/families/config_fields.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"

namespace hookline {

int64_t HeadWidth(const ConfigReader& config, const std::string& width_key, int64_t width, const std::string& heads_key,
                  int64_t heads) {
  if (width % heads != 0) {
    config.Refuse(width_key, absl::StrCat("a multiple of ", heads_key, " ", heads, " is wanted"));
    return 1;
  }
  return width / heads;
}

DecoderConfig ReadLlamaShape(const ConfigReader& config, const ShapeDefaults& defaults) {
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  decoder.heads = config.Integer("num_attention_heads", defaults.heads);
  decoder.key_value_heads = config.Integer("num_key_value_heads", defaults.key_value_heads.value_or(decoder.heads));
  if (decoder.heads % decoder.key_value_heads != 0) {
    config.Refuse("num_attention_heads",
                  absl::StrCat("a multiple of num_key_value_heads ", decoder.key_value_heads, " is wanted"));
  }
  if (config.Has("head_dim") || defaults.head_width.has_value()) {
    decoder.head_width = config.Integer("head_dim", defaults.head_width);
  } else {
    decoder.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_attention_heads", decoder.heads);
  }
  decoder.mlp_width = config.Integer("intermediate_size");
  decoder.vocabulary_size = config.Integer("vocab_size", defaults.vocabulary_size);
  decoder.context_length = config.Integer("max_position_embeddings", defaults.context_length);
  LayerConfig layer;
  layer.rotary = 0;
  layer.attention_scale = 1 / std::sqrt(static_cast<double>(decoder.head_width));
  decoder.layers.assign(static_cast<size_t>(config.Integer("num_hidden_layers", std::nullopt, kMaxLayers)), layer);
  decoder.gated = true;
  decoder.ln1 = {NormConfig::Kind::kRms, config.Number("rms_norm_eps", defaults.epsilon), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  return decoder;
}

Activation ReadActivation(const ConfigReader& config, const std::string& key,
                          const std::optional<std::string>& fallback) {
  const std::string name = config.Text(key, fallback);
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  config.Refuse(key, "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, silu and relu are computed");
  return Activation::kGelu;
}

RotaryConfig ReadRotaryScaling(const ConfigReader& rope, int64_t head_width, double base, double share) {
  RotaryConfig rotary;
  rotary.base = base;
  rotary.dims = static_cast<int64_t>(share * static_cast<double>(head_width));
  if (share > 1 || rotary.dims < 2 || rotary.dims % 2 != 0) {
    rope.Fail(absl::StrCat("a share of ", share, " of ", head_width,
                           " values per head is to be rotated; an even number of them, at least 2, is wanted"));
  }
  // Older files say `type`.
  const std::string key = rope.Has("rope_type") || !rope.Has("type") ? "rope_type" : "type";
  const std::string type = rope.Text(key, "default");
  if (type == "linear") {
    rotary.scaling = RotaryConfig::Scaling::kLinear;
    rotary.factor = rope.Number("factor");
  } else if (type == "llama3") {
    rotary.scaling = RotaryConfig::Scaling::kLlama3;
    rotary.factor = rope.Number("factor");
    rotary.low_frequency_factor = rope.Number("low_freq_factor");
    rotary.high_frequency_factor = rope.Number("high_freq_factor");
    rotary.original_context = static_cast<double>(rope.Integer("original_max_position_embeddings"));
    if (rotary.high_frequency_factor <= rotary.low_frequency_factor) {
      rope.Refuse("high_freq_factor",
                  absl::StrCat("more than low_freq_factor ", rotary.low_frequency_factor, " is wanted"));
    }
  } else if (type != "default") {
    rope.Refuse(key, "default, linear and llama3 are computed");
  }
  return rotary;
}

RotaryConfig ReadRotary(const ConfigReader& config, int64_t head_width, const RotaryDefaults& defaults) {
  const double base = config.Number(defaults.base_key, defaults.base);
  const double share =
      config.Number(defaults.share_key != nullptr ? defaults.share_key : "partial_rotary_factor", defaults.share);
  const bool written_by_transformers_5 = config.Has("rope_parameters");
  const ConfigReader rope = config.Object(written_by_transformers_5 ? "rope_parameters" : "rope_scaling");
  const double rope_base = rope.Number("rope_theta", base);
  const double rope_share = rope.Number("partial_rotary_factor", share);
  if (defaults.share_key == nullptr && rope_share != 1) {
    (rope.Has("partial_rotary_factor") ? rope : config)
        .Refuse("partial_rotary_factor", "this family's heads are rotated whole, which is 1");
  }
  return ReadRotaryScaling(rope, head_width, rope_base, rope_share);
}

void ReadWindows(const ConfigReader& config, std::optional<int64_t> window, absl::FunctionRef<bool(int layer)> slides,
                 DecoderConfig* decoder) {
  std::vector<std::string> types;
  const bool named = config.Has("layer_types");
  if (named) {
    types = config.Texts("layer_types");
    if (types.size() != decoder->layers.size()) {
      config.Fail(absl::StrCat("layer_types has ", types.size(), " entries, but num_hidden_layers is ",
                               decoder->layers.size()));
      return;
    }
  }
  for (size_t i = 0; i < decoder->layers.size(); ++i) {
    if (named && types[i] != "full_attention" && types[i] != "sliding_attention") {
      config.Fail(absl::StrCat("layer_types[", i, "] is \"", types[i].substr(0, 80),
                               "\"; full_attention and sliding_attention are computed"));
      return;
    }
    if (named ? types[i] == "full_attention" : !slides(static_cast<int>(i))) continue;
    if (!window.has_value()) {
      config.Fail(absl::StrCat("layer_types[", i, "] is \"sliding_attention\", but this model has no sliding_window"));
      return;
    }
    decoder->layers[i].reach = *window - 1;
  }
}

bool LayerSlides(const LayerConfig& layer) { return layer.reach >= 0; }

}  // namespace hookline
