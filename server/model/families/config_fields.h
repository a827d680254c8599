// Fields of config.json that several families share, in both forms that exist: as published, and as transformers 5
// writes them (`layer_types`). Those about rotation are in rope_fields.h.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "server/model/decoder_config.h"
#include "server/model/families/config_reader.h"

namespace hookline {

constexpr int64_t kMaxLayers = 1024;

// Defaults of transformers where a llama-like config.json is silent. Without a value: the field is needed, the heads
// aside: there are as many key/value heads as heads, and head_dim is hidden_size / num_attention_heads.
struct ShapeDefaults {
  std::optional<int64_t> heads;
  std::optional<int64_t> key_value_heads;
  std::optional<int64_t> head_width;
  std::optional<int64_t> vocabulary_size;
  std::optional<int64_t> mlp_width;
  const char* activation_key = "hidden_act";
  const char* activation = "silu";
  int64_t context_length = 2048;
  double epsilon = 1e-6;
};

// Sizes of a llama-like model: gated MLP with the activation function that `hidden_act` names (silu), RMSNorm with
// weights as ln1, ln2 and ln_final, scores divided by sqrt(head_width), layers that see everything and use rotation 0.
DecoderConfig ReadLlamaShape(const ConfigReader& config, const ShapeDefaults& defaults);

// The softmax attention of a decoder all of whose layers have the same, apart from their reach.
SoftmaxAttentionConfig& FirstAttention(DecoderConfig& decoder);

// Calls `change` for the softmax attention of every layer that has one.
void ForEachAttention(DecoderConfig* decoder,
                      absl::FunctionRef<void(int layer, SoftmaxAttentionConfig& attention)> change);

// Norms only after attention and MLP, as in OLMo 2 and 3, in place of those before them.
void MoveNormsBehind(DecoderConfig* decoder);

// heads x head_width == width, or an error that names `heads_key` and `width_key`.
int64_t HeadWidth(const ConfigReader& config, const std::string& width_key, int64_t width, const std::string& heads_key,
                  int64_t heads);

// The activation function that field `key` names, in any of the spellings that transformers has for it.
Activation ReadActivation(const ConfigReader& config, const std::string& key,
                          const std::optional<std::string>& fallback);

// `sliding_window`, `fallback` where the field is missing; null means that there is none.
std::optional<int64_t> ReadWindow(const ConfigReader& config, std::optional<int64_t> fallback);

// Gives the layers that slide a window of `window` positions (nullopt: there is none to give): those that `layer_types`
// names, or where there is no such field those that `slides` says.
void ReadWindows(const ConfigReader& config, std::optional<int64_t> window, absl::FunctionRef<bool(int layer)> slides,
                 DecoderConfig* decoder);

// GPT-2's and GPT-J's sizes have the common names as aliases; where both stand, they must agree.
void AgreeWithAliases(const ConfigReader& config, const DecoderConfig& decoder, int64_t heads, int64_t layers);

// The entries of `layer_types`, as many as there are layers; empty where the field is missing.
std::vector<std::string> LayerTypes(const ConfigReader& config, size_t layers);

// Returns whether a layer has softmax attention within a window, as ReadWindows finds it.
bool LayerSlides(const LayerConfig& layer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_
