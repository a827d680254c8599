#include "server/model/families/config_fields.h"

#include <cmath>
#include <variant>

#include "absl/strings/str_cat.h"

namespace hookline {

int64_t HeadWidth(const ConfigReader& config, const std::string& width_key, int64_t width, const std::string& heads_key,
                  int64_t heads) {
  if (width % heads != 0) {
    config.Refuse(width_key, absl::StrCat("expected a multiple of ", heads_key, " ", heads));
    return 1;
  }
  return width / heads;
}

namespace {

// Checks Gemma's `hidden_act`, in which "gelu" means the approximation, against `hidden_activation`.
void AgreeWithOldActivation(const ConfigReader& config, Activation activation) {
  if (!config.Has("hidden_act") || config.Text("hidden_act") == "gelu") return;
  if (ReadActivation(config, "hidden_act", std::nullopt) != activation) {
    config.Refuse("hidden_act", "but hidden_activation names another function, and both mean the same");
  }
}

}  // namespace

DecoderConfig ReadLlamaShape(const ConfigReader& config, const ShapeDefaults& defaults) {
  SoftmaxAttentionConfig attention;
  DecoderConfig decoder;
  decoder.width = config.Integer("hidden_size");
  attention.heads = config.Integer("num_attention_heads", defaults.heads);
  attention.key_value_heads = config.Integer("num_key_value_heads", defaults.key_value_heads.value_or(attention.heads));
  if (attention.heads % attention.key_value_heads != 0) {
    config.Refuse("num_attention_heads",
                  absl::StrCat("expected a multiple of num_key_value_heads ", attention.key_value_heads));
  }
  if (config.Has("head_dim") || defaults.head_width.has_value()) {
    attention.head_width = config.Integer("head_dim", defaults.head_width);
  } else {
    attention.head_width = HeadWidth(config, "hidden_size", decoder.width, "num_attention_heads", attention.heads);
  }
  attention.rotary = 0;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  DenseConfig mlp;
  mlp.width = config.Integer("intermediate_size", defaults.mlp_width);
  mlp.activation = ReadActivation(config, defaults.activation_key, defaults.activation);
  mlp.gated = true;
  if (std::string(defaults.activation_key) == "hidden_activation") AgreeWithOldActivation(config, mlp.activation);
  decoder.vocabulary_size = config.Integer("vocab_size", defaults.vocabulary_size);
  decoder.context_length = config.Integer("max_position_embeddings", defaults.context_length);
  decoder.layers.assign(static_cast<size_t>(config.Integer("num_hidden_layers", std::nullopt, kMaxLayers)),
                        LayerConfig{attention, mlp});
  decoder.ln1 = {NormConfig::Kind::kRms, config.Number("rms_norm_eps", defaults.epsilon), /*weighted=*/true};
  decoder.ln2 = decoder.ln_final = decoder.ln1;
  return decoder;
}

SoftmaxAttentionConfig& FirstAttention(DecoderConfig& decoder) { return decoder.layers.front().softmax(); }

void ForEachAttention(DecoderConfig* decoder,
                      absl::FunctionRef<void(int layer, SoftmaxAttentionConfig& attention)> change) {
  for (size_t i = 0; i < decoder->layers.size(); ++i) {
    auto* attention = std::get_if<SoftmaxAttentionConfig>(&decoder->layers[i].attention);
    if (attention != nullptr) change(static_cast<int>(i), *attention);
  }
}

void MoveNormsBehind(DecoderConfig* decoder) {
  decoder->ln1_post = decoder->ln1;
  decoder->ln2_post = decoder->ln2;
  decoder->ln1 = decoder->ln2 = NormConfig{};
}

Activation ReadActivation(const ConfigReader& config, const std::string& key,
                          const std::optional<std::string>& fallback) {
  static constexpr struct {
    const char* name;
    Activation activation;
  } kNames[] = {
      {"gelu", Activation::kGelu},
      {"gelu_accurate", Activation::kGeluTanh},
      {"gelu_fast", Activation::kGeluTanh},
      {"gelu_new", Activation::kGeluTanh},
      {"gelu_python", Activation::kGelu},
      {"gelu_python_tanh", Activation::kGeluTanh},
      {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"quick_gelu", Activation::kQuickGelu},
      {"relu", Activation::kRelu},
      {"relu2", Activation::kReluSquared},
      {"silu", Activation::kSilu},
      {"swish", Activation::kSilu},
  };
  const std::string name = config.Text(key, fallback);
  std::string known;
  for (const auto& one : kNames) {
    if (name == one.name) return one.activation;
    absl::StrAppend(&known, known.empty() ? "" : ", ", one.name);
  }
  config.Refuse(key, absl::StrCat(known, " are supported"));
  return Activation::kGelu;
}

void AgreeWithAliases(const ConfigReader& config, const DecoderConfig& decoder, int64_t heads, int64_t layers) {
  config.Agree("hidden_size", static_cast<double>(decoder.width), "n_embd");
  config.Agree("num_attention_heads", static_cast<double>(heads), "n_head");
  config.Agree("num_hidden_layers", static_cast<double>(layers), "n_layer");
  config.Agree("max_position_embeddings", static_cast<double>(decoder.context_length), "n_positions");
}

std::vector<std::string> LayerTypes(const ConfigReader& config, size_t layers) {
  if (!config.Has("layer_types")) return {};
  std::vector<std::string> types = config.Texts("layer_types");
  if (types.size() != layers) {
    config.Fail(absl::StrCat("layer_types has ", types.size(), " entries, but num_hidden_layers is ", layers));
    types.resize(layers);
  }
  return types;
}

std::optional<int64_t> ReadWindow(const ConfigReader& config, std::optional<int64_t> fallback) {
  if (config.IsNull("sliding_window") || (!config.Has("sliding_window") && !fallback.has_value())) return std::nullopt;
  return config.Integer("sliding_window", fallback);
}

void ReadWindows(const ConfigReader& config, std::optional<int64_t> window, absl::FunctionRef<bool(int layer)> slides,
                 DecoderConfig* decoder) {
  const std::vector<std::string> types = LayerTypes(config, decoder->layers.size());
  const bool named = !types.empty();
  for (size_t i = 0; i < decoder->layers.size(); ++i) {
    if (named && types[i] != "full_attention" && types[i] != "sliding_attention") {
      config.Fail(absl::StrCat("layer_types[", i, "] is \"", types[i].substr(0, 80),
                               "\"; full_attention and sliding_attention are supported"));
      return;
    }
    if (named ? types[i] == "full_attention" : !slides(static_cast<int>(i))) continue;
    if (!window.has_value()) {
      config.Fail(
          named ? absl::StrCat("layer_types[", i, "] is \"sliding_attention\", but this model has no sliding_window")
                : absl::StrCat("layer ", i, " of this family has a window, but there is no sliding_window"));
      return;
    }
    decoder->layers[i].softmax().reach = *window - 1;
  }
}

ConfigReader TextConfig(const ConfigReader& config, const char* model_type) {
  const ConfigReader text = config.Object("text_config");
  if (text.Text("model_type", model_type) != model_type) {
    text.Refuse("model_type", absl::StrCat("expected ", model_type));
  }
  return text;
}

bool LayerSlides(const LayerConfig& layer) {
  const auto* attention = std::get_if<SoftmaxAttentionConfig>(&layer.attention);
  return attention != nullptr && attention->reach >= 0;
}

}  // namespace hookline
