// Gemma 4, the dense text models: embeddings for each layer beside the residual stream, two head sizes, and last layers
// that read the keys and values of earlier ones. Published checkpoints also hold towers for images and sound.
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {
namespace {

DecoderConfig ReadShape(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.heads = 8;
  defaults.key_value_heads = 4;
  defaults.head_width = 256;
  defaults.activation_key = "hidden_activation";
  defaults.activation = "gelu_pytorch_tanh";
  defaults.vocabulary_size = 262144;
  defaults.context_length = 131072;
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.embedding_scale = std::sqrt(static_cast<double>(decoder.width));
  decoder.logit_soft_cap = config.Number("final_logit_softcapping", 0);
  decoder.ln1_post = decoder.ln2_post = decoder.ln1;
  ForEachAttention(&decoder, [&](int, SoftmaxAttentionConfig& one) {
    one.scale = 1;
    one.query_key_norm.norm = decoder.ln1;
    one.value_norm = decoder.ln1;
    one.value_norm.weighted = false;
  });
  if (config.Flag("enable_moe_block", false)) config.Refuse("enable_moe_block", "only dense models are supported");
  if (config.Text("use_bidirectional_attention", "vision") != "vision") {
    config.Refuse("use_bidirectional_attention", "attention that looks ahead is not supported for text");
  }
  return decoder;
}

// The objects of `per_layer_config` by layer. Their keys have leading zeros, so that all keys have the same length.
std::map<int, ConfigReader> ReadOwnSizes(const ConfigReader& config, size_t layers) {
  std::map<int, ConfigReader> own;
  const ConfigReader by_layer = config.Object("per_layer_config");
  for (const std::string& key : by_layer.Names()) {
    int layer = -1;
    if (!absl::SimpleAtoi(key, &layer) || layer < 0 || layer >= static_cast<int>(layers)) {
      by_layer.Refuse(key, absl::StrCat("its name must be the number of one of ", layers, " layers"));
      break;
    }
    const auto [place, is_new] = own.emplace(layer, by_layer.Object(key));
    if (!is_new) by_layer.Refuse(key, absl::StrCat("layer ", layer, " appears twice"));
    const ConfigReader& sizes = place->second;
    for (const std::string& size : sizes.Names()) {
      if (size != "head_dim" && size != "num_key_value_heads") {
        sizes.Refuse(size, "only head_dim and num_key_value_heads can differ by layer");
      }
    }
  }
  return own;
}

// Reads the windows, and the sizes of the layers without one; the last layer never has a window.
void ReadLayerKinds(const ConfigReader& config, DecoderConfig* decoder) {
  ReadWindows(
      config, ReadWindow(config, 512), [](int layer) { return (layer + 1) % 6 != 0; }, decoder);
  decoder->layers.back().softmax().reach = -1;
  const bool key_value = config.Flag("attention_k_eq_v", false), by_layer = config.Has("per_layer_config");
  const std::map<int, ConfigReader> sizes = ReadOwnSizes(config, decoder->layers.size());
  ForEachAttention(decoder, [&](int i, SoftmaxAttentionConfig& one) {
    const bool full = one.reach < 0;
    if (const auto own = sizes.find(i); own != sizes.end()) {
      one.head_width = own->second.Integer("head_dim", one.head_width);
      one.key_value_heads = own->second.Integer("num_key_value_heads", one.key_value_heads);
    }
    if (by_layer && full) {
      config.Agree("global_head_dim", static_cast<double>(one.head_width), "per_layer_config");
      if (key_value) {
        config.Agree("num_global_key_value_heads", static_cast<double>(one.key_value_heads), "per_layer_config");
      }
    } else if (full) {
      one.head_width = config.Integer("global_head_dim", 512);
      if (key_value) one.key_value_heads = config.Integer("num_global_key_value_heads", one.key_value_heads);
    }
    one.key_value = full && key_value;
    one.rotary = full ? 0 : 1;
    if (one.heads % one.key_value_heads != 0) {
      config.Refuse("num_attention_heads",
                    absl::StrCat("expected a multiple of the ", one.key_value_heads, " key/value heads of layer ", i));
    }
  });
}

// Makes the last `num_kv_shared_layers` layers read the keys and values of the last earlier layer of their kind.
void ReadSharedKeys(const ConfigReader& config, DecoderConfig* decoder) {
  const int layers = static_cast<int>(decoder->layers.size());
  const int first = layers - static_cast<int>(config.Count("num_kv_shared_layers", 0));
  const bool wide = config.Flag("use_double_wide_mlp", false);
  for (int i = std::max(first, 0); i < layers; ++i) {
    SoftmaxAttentionConfig& one = decoder->layers[i].softmax();
    for (int j = 0; j < first; ++j) {
      if (LayerSlides(decoder->layers[j]) == LayerSlides(decoder->layers[i])) one.keys_from = j;
    }
    if (one.keys_from < 0) {
      config.Refuse("num_kv_shared_layers",
                    absl::StrCat("layer ", i, " has no earlier layer of its kind to read from"));
      return;
    }
    decoder->layers[one.keys_from].softmax().shares_keys = true;
    if (wide) std::get<DenseConfig>(decoder->layers[i].feed_forward).width *= 2;
  }
}

std::vector<RotaryConfig> ReadRotations(const ConfigReader& config, const DecoderConfig& decoder) {
  int64_t full_width = 2, sliding_width = 2;
  for (const LayerConfig& layer : decoder.layers) {
    const auto& one = std::get<SoftmaxAttentionConfig>(layer.attention);
    (one.reach < 0 ? full_width : sliding_width) = one.head_width;
  }
  RotaryDefaults full, sliding;
  full.base = 1e6;
  full.share_key = "partial_rotary_factor";
  full.proportional = true;
  full.context_length = sliding.context_length = decoder.context_length;
  if (config.Has("rope_scaling")) config.Refuse("rope_scaling", "this family uses rope_parameters");
  const RotaryByKind both = ReadRotaryByKind(config, full_width, full, sliding_width, sliding);
  std::vector<RotaryConfig> rotary = {both.full, both.sliding};
  if (!config.Has("rope_parameters")) {
    rotary[0].scaling = RotaryConfig::Scaling::kProportional;
    rotary[0].turning = full_width / 8;  // a quarter of the pairs
  }
  return rotary;
}

LlamaNames Names(const ConfigReader& config) {
  LlamaNames names;
  names.norm_weight = LlamaNames::NormWeight::kWide;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.ln1_post = "post_attention_layernorm";
  names.ln2 = "pre_feedforward_layernorm";
  names.ln2_post = "post_feedforward_layernorm";
  names.rest = [](LlamaTaker& llama, const LayerConfig& config, const std::string& prefix, LayerWeights* layer) {
    layer->output_scale = llama.take.Get(prefix + "layer_scalar", {1});
    const int64_t part = llama.config().per_layer_embedding.width, d = llama.width();
    if (part > 0) {
      layer->per_layer.gate = llama.Linear(prefix + "per_layer_input_gate", d, part, /*bias=*/false);
      layer->per_layer.out = llama.Linear(prefix + "per_layer_projection", part, d, /*bias=*/false);
      layer->per_layer.norm = llama.Norm(prefix + "post_per_layer_input_norm", d);
    }
    // Layers that read another layer's keys can still have unused weights of their own.
    if (std::get<SoftmaxAttentionConfig>(config.attention).keys_from < 0) return;
    for (const char* unused : {"k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "k_norm.weight"}) {
      llama.take.Ignore(prefix + "self_attn." + unused);
    }
  };
  return names;
}

bool IsOfTower(const std::string& name) {
  for (const char* tower : {"vision_tower.", "embed_vision.", "audio_tower.", "embed_audio."}) {
    if (absl::StartsWith(name, absl::StrCat("model.", tower))) return true;
  }
  return false;
}

DecoderWeights TakeWeights(const DecoderConfig& config, LlamaNames names, WeightTaker& take) {
  const std::string beside_towers = "model.language_model.";
  if (take.Has(beside_towers + "embed_tokens.weight")) names.prefix = beside_towers;
  LlamaTaker llama(config, names, take);
  DecoderWeights weights = llama.All();
  const PerLayerEmbeddingConfig& parts = config.per_layer_embedding;
  if (parts.width == 0) return weights;
  const int64_t all = parts.width * static_cast<int64_t>(config.layers.size());
  weights.per_layer_embedding =
      take.Table(names.prefix + "embed_tokens_per_layer.weight", {parts.vocabulary_size, all});
  weights.per_layer_projection =
      llama.Linear(names.prefix + "per_layer_model_projection", config.width, all, /*bias=*/false);
  weights.per_layer_norm = llama.Norm(names.prefix + "per_layer_projection_norm", parts.width);
  return weights;
}

}  // namespace

Architecture ReadGemma4(const ConfigReader& outer) {
  const ConfigReader config = outer.Has("text_config") ? TextConfig(outer, "gemma4_text") : outer;
  DecoderConfig decoder = ReadShape(config);
  ReadLayerKinds(config, &decoder);
  ReadSharedKeys(config, &decoder);
  decoder.rotary = ReadRotations(config, decoder);
  PerLayerEmbeddingConfig& parts = decoder.per_layer_embedding;
  if (!config.IsNull("hidden_size_per_layer_input")) parts.width = config.Count("hidden_size_per_layer_input", 256);
  parts.vocabulary_size = config.Integer("vocab_size_per_layer_input", 262144);
  parts.activation = std::get<DenseConfig>(decoder.layers.front().feed_forward).activation;
  parts.norm = decoder.ln1;
  // A token needs a row in both tables.
  if (parts.width > 0 && parts.vocabulary_size < decoder.vocabulary_size) {
    config.Refuse("vocab_size_per_layer_input", absl::StrCat("expected at least vocab_size ", decoder.vocabulary_size));
  }
  return {
      std::move(decoder),
      [names = Names(config)](const DecoderConfig& made, WeightTaker& take) { return TakeWeights(made, names, take); },
      IsOfTower};
}

}  // namespace hookline
