// Reads fields of config.json that several families share, in both existing forms: as published, and as transformers 5
// writes them (`layer_types`). rope_fields.h reads those about rotation.
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

// The defaults of transformers for a llama-like config.json. A field without a default is required, except for the
// heads: by default, there are as many key/value heads as heads, and head_dim is hidden_size / num_attention_heads.
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

// Reads the sizes of a llama-like model: gated MLP with the activation function that `hidden_act` names (silu), RMSNorm
// with weights as ln1, ln2 and ln_final, scores divided by sqrt(head_width), layers that see all positions and use
// rotation 0.
DecoderConfig ReadLlamaShape(const ConfigReader& config, const ShapeDefaults& defaults);

// The attention of the first layer, for decoders in which all layers have the same softmax attention but for its reach.
SoftmaxAttentionConfig& FirstAttention(DecoderConfig& decoder);

// Calls `change` for the softmax attention of every layer that has one.
void ForEachAttention(DecoderConfig* decoder,
                      absl::FunctionRef<void(int layer, SoftmaxAttentionConfig& attention)> change);

// Moves the norms from before attention and MLP to after them, as in OLMo 2 and 3.
void MoveNormsBehind(DecoderConfig* decoder);

// Returns width / heads; if that is not an integer, adds an error that names `heads_key` and `width_key`.
int64_t HeadWidth(const ConfigReader& config, const std::string& width_key, int64_t width, const std::string& heads_key,
                  int64_t heads);

// Reads the activation function that field `key` names, in any spelling that transformers has for it.
Activation ReadActivation(const ConfigReader& config, const std::string& key,
                          const std::optional<std::string>& fallback);

// Reads `sliding_window`, or `fallback` if the field is missing; null means no window.
std::optional<int64_t> ReadWindow(const ConfigReader& config, std::optional<int64_t> fallback);

// Gives sliding layers a window of `window` positions; nullopt means that the model has none. `layer_types` says which
// layers slide, or `slides` if that field is missing.
void ReadWindows(const ConfigReader& config, std::optional<int64_t> window, absl::FunctionRef<bool(int layer)> slides,
                 DecoderConfig* decoder);

// Checks the common names of sizes, which GPT-2 and GPT-J have as aliases: where a file has both names,
// they must agree.
void AgreeWithAliases(const ConfigReader& config, const DecoderConfig& decoder, int64_t heads, int64_t layers);

// Returns the entries of `layer_types`, one for each layer, or none if the field is missing.
std::vector<std::string> LayerTypes(const ConfigReader& config, size_t layers);

// Returns the configuration of a multimodal model's language model, `text_config`, which must be of this type.
ConfigReader TextConfig(const ConfigReader& config, const char* model_type);

// Returns whether a layer has softmax attention within a window; call it after ReadWindows.
bool LayerSlides(const LayerConfig& layer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_FIELDS_H_
