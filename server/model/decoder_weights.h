// A decoder's weights, as the families fill them in.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_WEIGHTS_H_
#define HOOKLINE_SERVER_MODEL_DECODER_WEIGHTS_H_

#include <ATen/ATen.h>

#include <variant>
#include <vector>

namespace hookline {

// x -> x weight + bias.
struct LinearWeights {
  at::Tensor weight;  // (in, out); usually a view of (out, in)
  at::Tensor bias;    // (out), or undefined
};

struct NormWeights {
  // (width), or undefined. If it is float32, the product with it is rounded to the model's dtype; if it has the model's
  // dtype, the norm's output is rounded before the product.
  at::Tensor weight;
  at::Tensor bias;  // (width), or undefined
};

// H heads of E values, K key/value heads.
struct SoftmaxAttentionWeights {
  LinearWeights query;       // (width, H E); with a gate (width, H * 2 E), per head E of the query, then E of the gate
  LinearWeights key, value;  // (width, K E); undefined where the layer reads another's
  // Replaces the three where a checkpoint stores each head's query, key and value together, so that the stored tensor
  // is used in place: (width, H * 3 * E).
  LinearWeights query_key_value;
  NormWeights query_norm, key_norm;
  at::Tensor sinks;   // (H), float32, or undefined
  LinearWeights out;  // (H E, width)

  // A table with a vector for each token id. Each head adds its part to the values, multiplied by a gate that reads the
  // first channels of attention's input. Undefined where the layer has none.
  at::Tensor value_embedding;       // (ids, K E)
  at::Tensor value_embedding_gate;  // (channels, K)
};

// A head has P plain, R rotated and V value values. Without a query_rank, `query_up` reads the layer's input.
struct LatentAttentionWeights {
  LinearWeights query_down;      // (width, query_rank), or undefined
  NormWeights query_norm;        // (query_rank)
  LinearWeights query_up;        // (query_rank or width, H (P + R)), per head plain values, then rotated ones
  LinearWeights key_value_down;  // (width, key_value_rank + R)
  NormWeights key_value_norm;    // (key_value_rank)
  LinearWeights key_value_up;    // (key_value_rank, H (P + V)), per head plain key values, then the value
  LinearWeights out;             // (H V, width)
};

// K key heads of P values, H value heads of V values.
struct GatedDeltaWeights {
  LinearWeights query_key_value;  // (width, 2 K P + H V)
  LinearWeights gate;             // (width, H V)
  LinearWeights write;            // (width, H), the logit of the share of a position's error that is written
  LinearWeights decay;            // (width, H)
  at::Tensor decay_bias;          // (H), float32
  at::Tensor log_decay_rate;      // (H), float32
  at::Tensor convolution;         // (2 K P + H V, kernel), float32
  NormWeights norm;               // (V)
  LinearWeights out;              // (H V, width)
};

using AttentionWeights = std::variant<SoftmaxAttentionWeights, LatentAttentionWeights, GatedDeltaWeights>;

struct DenseWeights {
  LinearWeights gate;  // (width, hidden), gated MLPs only
  LinearWeights up;    // (width, hidden)
  LinearWeights down;  // (hidden, width)
};

// An expert's gate and up are separate, or together in gate_up where a checkpoint stores them in alternating columns,
// so that the stored tensor is used in place.
struct ExpertWeights {
  DenseWeights apart;
  LinearWeights gate_up;  // (width, 2 * hidden): gate 0, up 0, gate 1, ...; then apart.gate and apart.up are undefined
};

struct ExpertsWeights {
  LinearWeights router;   // (width, experts); if it is float32, so are the logits, whatever the model's dtype
  at::Tensor correction;  // (experts), float32, added to the scores for the choice; or undefined
  std::vector<ExpertWeights> experts;
  DenseWeights shared;        // undefined where there is no shared expert
  LinearWeights shared_gate;  // (width, 1), or undefined
};

using FeedForwardWeights = std::variant<DenseWeights, ExpertsWeights>;

// The weights that turn a layer's part of the per-layer embeddings into a term of the residual stream.
struct PerLayerWeights {
  LinearWeights gate;  // (width, part)
  LinearWeights out;   // (part, width)
  NormWeights norm;    // (width)
};

struct LayerWeights {
  NormWeights ln1, ln1_post, ln2, ln2_post;
  AttentionWeights attention;
  FeedForwardWeights feed_forward;

  PerLayerWeights per_layer;  // undefined where the decoder has no embeddings per layer
  at::Tensor output_scale;    // (1), multiplies the block's output, or undefined

  // x = residual_factor x + embedding_factor x0 + bigram_factor bigram, before the block.
  double residual_factor = 1, embedding_factor = 0, bigram_factor = 0;
};

// Embedding tables keep the dtype in which they were stored; rows are converted when they are read.
struct DecoderWeights {
  at::Tensor token_embedding;          // (ids, embedding_width or width)
  LinearWeights embedding_projection;  // (embedding_width, width), or undefined
  at::Tensor position_embedding;       // (positions, width), or undefined
  at::Tensor per_layer_embedding;      // (ids, layers * part), or undefined
  LinearWeights per_layer_projection;  // (width, layers * part), or undefined
  NormWeights per_layer_norm;          // (part)
  std::vector<LayerWeights> layers;
  NormWeights ln_final;

  // The weights that compute the logits, undefined where none are computed. If the unembedding is tied, it is the
  // embedding's own tensor, in its stored dtype.
  LinearWeights unembedding;             // (embedding_width or width, ids)
  LinearWeights unembedding_projection;  // (width, embedding_width), or undefined

  // x[t] += smear_factor sigmoid(x[t, :channels] smear_gate) x[t-1], after the embedding's norm.
  at::Tensor smear_gate;  // (channels, 1), or undefined
  double smear_factor = 0;
  // A row for each hash of a pair of tokens.
  at::Tensor bigram_embedding;  // (5 * vocabulary_size, width), or undefined
  // The output of the middle block, times this factor, is subtracted before the last norm.
  double backout_factor = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_WEIGHTS_H_
