// Fields of config.json that several families share, in both forms that exist: as published, and as transformers 5
// writes them (`rope_parameters`, `layer_types`).
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "server/model/decoder_config.h"
#include "server/model/families/config_reader.h"

namespace hookline {

constexpr int64_t kMaxLayers = 1024;

// What transformers takes where a llama-like config.json is silent. Without a value: the field is needed, the heads
// aside: there are as many key/value heads as heads, and head_dim is hidden_size / num_attention_heads.
struct ShapeDefaults {
  std::optional<int64_t> heads;
  std::optional<int64_t> key_value_heads;
  std::optional<int64_t> head_width;
  std::optional<int64_t> vocabulary_size;
  int64_t context_length = 2048;
  double epsilon = 1e-6;
};

// Sizes of a llama-like model: gated MLP, RMSNorm with weights as ln1, ln2 and ln_final, scores divided by
// sqrt(head_width), layers that see everything and use rotation 0.
DecoderConfig ReadLlamaShape(const ConfigReader& config, const ShapeDefaults& defaults);

// heads x head_width == width, or an error that names `heads_key` and `width_key`.
int64_t HeadWidth(const ConfigReader& config, const std::string& width_key, int64_t width, const std::string& heads_key,
                  int64_t heads);

// The activation function that field `key` names: gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, silu, relu.
Activation ReadActivation(const ConfigReader& config, const std::string& key,
                          const std::optional<std::string>& fallback);

struct RotaryDefaults {
  double base = 10000;
  const char* base_key = "rope_theta";  // in the published form
  const char* share_key = nullptr;      // in the published form: which share of a head is rotated; null: all of it
  double share = 1;
};

// `rope_parameters`, or in the published form the base, the share and `rope_scaling`.
RotaryConfig ReadRotary(const ConfigReader& config, int64_t head_width, const RotaryDefaults& defaults);

// The fields of `rope`, an object like rope_parameters or rope_scaling: its type (default, linear, llama3) with what
// belongs to it; base and share are given.
RotaryConfig ReadRotaryScaling(const ConfigReader& rope, int64_t head_width, double base, double share);

// Gives the layers that slide a window of `window` positions (nullopt: there is none to give): those that `layer_types`
// names, or where there is no such field those that `slides` says.
void ReadWindows(const ConfigReader& config, std::optional<int64_t> window, absl::FunctionRef<bool(int layer)> slides,
                 DecoderConfig* decoder);

// Which layers slide, as ReadWindows finds them.
bool LayerSlides(const LayerConfig& layer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_
