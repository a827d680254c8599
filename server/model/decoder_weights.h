// A decoder's weights, where the families put them.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_WEIGHTS_H_
#define HOOKLINE_SERVER_MODEL_DECODER_WEIGHTS_H_

#include <ATen/ATen.h>

#include <vector>

namespace hookline {

// x -> x weight + bias.
struct LinearWeights {
  at::Tensor weight;  // (in, out); usually a view of (out, in)
  at::Tensor bias;    // (out), or undefined
};

struct NormWeights {
  // (width), or undefined. In float32 the product with it is rounded to the model's dtype; in the model's dtype the
  // norm's output is rounded before it is multiplied.
  at::Tensor weight;
  at::Tensor bias;  // (width), or undefined
};

struct LayerWeights {
  NormWeights ln1, ln1_post, ln2, ln2_post;
  LinearWeights query, key, value;
  // Instead of the three, where a checkpoint stores each head's query, key and value together, so that it is used where
  // it lies: (width, heads * 3 * head_width).
  LinearWeights query_key_value;
  NormWeights query_norm, key_norm;
  LinearWeights attention_out;
  LinearWeights gate;  // gated MLPs only
  LinearWeights up, down;

  // A table of vectors that are added to the values, one per token id, each head's times a gate that reads the first
  // channels of attention's input. Undefined where the layer has none.
  at::Tensor value_embedding;       // (ids, key_value_heads * head_width)
  at::Tensor value_embedding_gate;  // (channels, key_value_heads)

  // x = residual_factor x + embedding_factor x0 + bigram_factor bigram, before the block.
  double residual_factor = 1, embedding_factor = 0, bigram_factor = 0;
};

// Embedding tables keep the dtype in which they were stored: their rows are converted when they are read.
struct DecoderWeights {
  at::Tensor token_embedding;     // (ids, width)
  at::Tensor position_embedding;  // (positions, width), or undefined
  std::vector<LayerWeights> layers;
  NormWeights ln_final;

  // x[t] += smear_factor sigmoid(x[t, :channels] smear_gate) x[t-1], after the embedding's norm.
  at::Tensor smear_gate;  // (channels, 1), or undefined
  double smear_factor = 0;
  // Rows for hashed pairs of tokens.
  at::Tensor bigram_embedding;  // (5 * vocabulary_size, width), or undefined
  // The output of the middle block, times this, is taken off before the last norm.
  double backout_factor = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_WEIGHTS_H_
