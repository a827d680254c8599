// The configuration of a decoder: everything that distinguishes one decoder-only transformer from another, apart from
// the weights. A family (server/model/families) reads a checkpoint's configuration into it; the decoder (decoder.h)
// computes what it describes. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_CONFIG_H_
#define HOOKLINE_SERVER_MODEL_DECODER_CONFIG_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "server/model/rotary_config.h"

namespace hookline {

enum class Activation { kRelu, kReluSquared, kSilu, kGelu, kGeluTanh, kQuickGelu };

// A norm over the last axis.
struct NormConfig {
  enum class Kind {
    kNone,   // there is no norm in this place
    kRms,    // x / sqrt(mean(x^2) + epsilon)
    kLayer,  // the same for x - mean(x)
  };
  Kind kind = Kind::kNone;
  double epsilon = 0;
  bool weighted = false;  // multiplied by a learned weight; kLayer also adds a bias
};

// The norm of queries and keys.
struct QueryKeyNormConfig {
  enum class Place { kBeforeRotary, kAfterRotary };
  enum class Span { kHead, kAllHeads };
  NormConfig norm;
  Place place = Place::kBeforeRotary;
  Span span = Span::kHead;
  double factor = 1;  // on the norm's output
};

// attention/softmax_attention.h
struct SoftmaxAttentionConfig {
  int64_t heads = 0;
  int64_t key_value_heads = 0;
  int64_t head_width = 0;
  // A position t sees positions t - reach ... t; if negative, all positions up to its own.
  int64_t reach = -1;
  int rotary = -1;      // index into DecoderConfig::rotary; -1: no rotation
  double scale = 1;     // on the scores
  double soft_cap = 0;  // scores become cap tanh(scores / cap); 0: no cap
  bool sinks = false;   // a learned logit per head that takes part in the softmax without a value
  QueryKeyNormConfig query_key_norm;
  NormConfig value_norm;   // of each head's values, after hook_v
  double clamp = 0;        // bound of |q| and |k| after their norm, and of |v|; 0: none
  bool gated = false;      // the query projection also gives each head a gate: z = attention sigmoid(gate)
  bool key_value = false;  // the values are the keys before norm and rotation
  // A layer with keys_from >= 0 projects no keys and values. It reads those of that earlier layer, whose
  // shares_keys is set.
  int keys_from = -1;
  bool shares_keys = false;
  double value_embedding_factor = 0;  // factor of the value embeddings' gate; 0: there are none
};

// attention/latent_attention.h
struct LatentAttentionConfig {
  int64_t heads = 0;
  int64_t query_rank = 0;      // width of the compressed queries; 0: they are not compressed
  int64_t key_value_rank = 0;  // width of the compressed keys and values
  int64_t plain_width = 0;     // values of a head that are not rotated
  int64_t rotated_width = 0;   // rotated values of a head; those of the key are shared by all heads
  int64_t value_width = 0;
  int rotary = 0;  // index into DecoderConfig::rotary
  double scale = 1;
  NormConfig rank_norm;  // norm of the compressed queries, and of keys and values
};

// attention/gated_delta.h
struct GatedDeltaConfig {
  int64_t key_heads = 0;
  int64_t value_heads = 0;
  int64_t key_width = 0;
  int64_t value_width = 0;
  int64_t kernel = 0;  // positions that the convolution sees
  NormConfig norm;     // of each head's output
};

using AttentionConfig = std::variant<SoftmaxAttentionConfig, LatentAttentionConfig, GatedDeltaConfig>;

// feed_forward/dense.h
struct DenseConfig {
  int64_t width = 0;
  Activation activation = Activation::kGelu;
  bool gated = false;  // down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))
};

// feed_forward/experts.h
struct ExpertsConfig {
  // The formulas for an expert's score, which decides whether it is chosen, and for its weight.
  enum class Routing {
    kSoftmax,          // both: softmax of the logits over all experts
    kSoftmaxOfChosen,  // score: the logit; weight: softmax over the chosen logits
    kSigmoid,          // weight: sigmoid of the logit; score: weight + learned correction, within the best groups
  };
  int64_t experts = 0;
  int64_t chosen = 0;
  int64_t width = 0;
  Routing routing = Routing::kSoftmax;
  bool renormalized = false;  // the chosen experts' weights are divided by their sum
  double weight_factor = 1;   // then multiplied by this
  // kSigmoid: consecutive experts form groups; only experts of the best `chosen_groups` can be chosen.
  int64_t groups = 1;
  int64_t chosen_groups = 1;
  Activation activation = Activation::kSilu;
  // If limit > 0, (min(gate, limit)) sigmoid(sharpness gate) (up + 1), with up clamped to +-limit, replaces
  // activation(gate) up.
  double limit = 0;
  double sharpness = 1;
  // The width of one more MLP that every token passes; 0: there is none.
  int64_t shared_width = 0;
  bool shared_gated = false;  // its output is multiplied by sigmoid(x gate)
};

using FeedForwardConfig = std::variant<DenseConfig, ExpertsConfig>;

// The part of the configuration that can differ from layer to layer.
struct LayerConfig {
  AttentionConfig attention;
  FeedForwardConfig feed_forward;

  // Requires softmax attention in this layer.
  SoftmaxAttentionConfig& softmax() { return std::get<SoftmaxAttentionConfig>(attention); }
};

// Further embeddings of each token, one for each layer, beside the residual stream (per_layer_embedding.h).
struct PerLayerEmbeddingConfig {
  int64_t width = 0;  // of a layer's part; 0: there are none
  int64_t vocabulary_size = 0;
  Activation activation = Activation::kGeluTanh;
  NormConfig norm;
};

struct DecoderConfig {
  // The order in which a block's sublayers follow each other.
  enum class Arrangement {
    kSequential,  // y = x + attention(ln1 x); y + mlp(ln2 y)
    kParallel,    // x + attention(ln1 x) + mlp(ln2 x); without ln2 the MLP reads ln1 x
    kPostNorm,    // y = ln1(x + attention(x)); ln2(y + mlp(y))
  };

  int64_t width = 0;  // of the residual stream
  int64_t vocabulary_size = 0;
  int64_t context_length = 0;
  std::vector<LayerConfig> layers;

  // Embedding.
  int64_t embedding_width = 0;  // width of the table, if it is projected to `width`; 0: it is not
  double embedding_scale = 1;
  bool position_embedding = false;  // learned, added to the token's
  NormConfig embedding_norm;        // after hook_embed
  PerLayerEmbeddingConfig per_layer_embedding;

  // Block.
  Arrangement arrangement = Arrangement::kSequential;
  NormConfig ln1;           // before attention
  NormConfig ln1_post;      // after it, before the residual sum
  NormConfig ln2;           // before the MLP
  NormConfig ln2_post;      // after it
  double branch_scale = 1;  // multiplies what attention and the MLP add
  NormConfig ln_final;

  std::vector<RotaryConfig> rotary;

  // Logits: cap tanh(scale z / cap), z the unembedding of ln_final's output. No hook point depends on these, so they
  // are not part of ToString.
  double logit_scale = 1;
  double logit_soft_cap = 0;      // 0: no cap
  bool tied_unembedding = false;  // a checkpoint without an unembedding uses the embedding for it

  // Everything but the logits on one line, in a fixed order. It is part of the model's fingerprint.
  std::string ToString() const;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_CONFIG_H_
