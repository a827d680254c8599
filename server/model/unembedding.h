// Turns the residual stream after the last norm into logits.
//
//   z = x P W + b                    P projects to the width of the embedding, if that differs
//   logits = cap tanh(scale z / cap)
#ifndef HOOKLINE_SERVER_MODEL_UNEMBEDDING_H_
#define HOOKLINE_SERVER_MODEL_UNEMBEDDING_H_

#include <ATen/ATen.h>

#include <cstdint>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"

namespace hookline {

class Unembedding {
 public:
  // Takes over `weights.unembedding` and `weights.unembedding_projection`.
  Unembedding(const DecoderConfig& config, DecoderWeights& weights);

  // Returns whether there are weights, so that Logits can be called.
  bool exists() const { return weights_.weight.defined(); }
  int64_t vocabulary_size() const { return weights_.weight.size(1); }

  // Returns the logits of x (rows, width) in float32, (rows, vocabulary_size). A logit takes 4 bytes, so callers pass
  // few rows at a time.
  at::Tensor Logits(const at::Tensor& x) const;

 private:
  const LinearWeights weights_, projection_;
  const double scale_, soft_cap_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_UNEMBEDDING_H_
