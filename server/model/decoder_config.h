// What distinguishes one decoder-only transformer from another. A family (server/model/families) reads a checkpoint's
// configuration into this; the decoder (decoder.h) computes what it says. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_CONFIG_H_
#define HOOKLINE_SERVER_MODEL_DECODER_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hookline {

enum class Activation { kRelu, kReluSquared, kSilu, kGelu, kGeluTanh };

// A norm over the last axis. Whether it has learned weights is told by the weights.
struct NormConfig {
  enum class Kind {
    kNone,   // there is no norm in this place
    kRms,    // x / sqrt(mean(x^2) + epsilon)
    kLayer,  // the same of x - mean(x)
  };
  Kind kind = Kind::kNone;
  double epsilon = 0;
  bool weighted = false;  // multiplied by a learned weight (and for kLayer a bias added)
};

// Rotary position embedding of the first `dims` values of each head: value j turns with value j + dims / 2 by the angle
// position x frequency_j, frequency_j = base^(-2j / dims), all in float32.
struct RotaryConfig {
  enum class Scaling { kNone, kLinear, kLlama3 };
  int64_t dims = 0;
  double base = 10000;
  bool clockwise = false;  // by minus the angle
  Scaling scaling = Scaling::kNone;
  double factor = 1;  // kLinear, kLlama3
  // kLlama3: wavelengths up to original_context / high_frequency_factor stay, those from original_context /
  // low_frequency_factor are stretched by `factor`, those between by something between.
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_context = 8192;
};

// Norm of queries and keys.
struct QueryKeyNormConfig {
  enum class Place { kBeforeRotary, kAfterRotary };
  enum class Span { kHead, kAllHeads };
  NormConfig norm;
  Place place = Place::kBeforeRotary;
  Span span = Span::kHead;
  double factor = 1;  // on the norm's output
};

// What may differ from layer to layer.
struct LayerConfig {
  // How far back a position sees: positions t - reach ... t. Negative: all positions before it.
  int64_t reach = -1;
  int rotary = -1;             // into DecoderConfig::rotary; -1: no rotation
  double attention_scale = 1;  // on the scores
};

struct DecoderConfig {
  int64_t width = 0;  // of the residual stream
  int64_t heads = 0;
  int64_t key_value_heads = 0;
  int64_t head_width = 0;
  int64_t mlp_width = 0;
  int64_t vocabulary_size = 0;
  int64_t context_length = 0;
  std::vector<LayerConfig> layers;

  // Embedding.
  double embedding_scale = 1;
  bool position_embedding = false;  // learned, added to the token's
  NormConfig embedding_norm;        // after hook_embed

  // Block.
  bool parallel = false;  // attention and MLP both read the block's input
  NormConfig ln1;         // before attention
  NormConfig ln1_post;    // after it, before the residual sum
  NormConfig ln2;         // before the MLP
  NormConfig ln2_post;    // after it
  NormConfig ln_final;

  // Attention.
  std::vector<RotaryConfig> rotary;
  QueryKeyNormConfig query_key_norm;
  double attention_soft_cap = 0;      // scores become cap tanh(scores / cap); 0: no cap
  double value_embedding_factor = 0;  // of the value embeddings' gate; 0: there are none

  // MLP.
  Activation activation = Activation::kGelu;
  bool gated = false;  // down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))

  // All of it on one line, in a fixed order: part of the model's fingerprint.
  std::string ToString() const;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_CONFIG_H_
