// Takes the small layers that many checkpoints store in the same way: `NAME.weight` and `NAME.bias`.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_TAKE_LAYERS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_TAKE_LAYERS_H_

#include <cstdint>
#include <string>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

enum class Bias { kNone, kThere };

inline Bias BiasIf(bool there) { return there ? Bias::kThere : Bias::kNone; }

// Takes a weight stored as (out, in).
inline LinearWeights TakeLinear(WeightTaker& take, const std::string& name, int64_t in, int64_t out, Bias bias) {
  LinearWeights weights;
  weights.weight = take.Linear(name + ".weight", in, out);
  if (bias == Bias::kThere) weights.bias = take.Get(name + ".bias", {out});
  return weights;
}

// Takes a LayerNorm's weight and bias, which are applied in float32.
inline NormWeights TakeLayerNorm(WeightTaker& take, const std::string& name, int64_t width) {
  return {take.Wide(name + ".weight", {width}), take.Wide(name + ".bias", {width})};
}

// A view of the outputs `first` ... `first + count - 1` of `all`.
inline LinearWeights Outputs(const LinearWeights& all, int64_t first, int64_t count) {
  LinearWeights part;
  if (all.weight.defined()) part.weight = all.weight.narrow(1, first, count);
  if (all.bias.defined()) part.bias = all.bias.narrow(0, first, count);
  return part;
}

// Takes the unembedding `name`, with `width` values a row. If the checkpoint has none, it is the weight `embedding`,
// already taken, where the configuration ties them. Otherwise it is undefined, and the model has no logits.
inline void TakeHead(WeightTaker& take, const std::string& name, const std::string& embedding,
                     const DecoderConfig& config, int64_t width, DecoderWeights* weights) {
  const int64_t ids = config.vocabulary_size;
  const bool has_weight = take.Has(name + ".weight"), has_bias = take.Has(name + ".bias");
  if (!take.evaluates()) {
    if (has_weight) take.Ignore(name + ".weight", {ids, width});
    if (has_bias) take.Ignore(name + ".bias", {ids});
    return;
  }
  if (has_weight) {
    weights->unembedding.weight = take.Linear(name + ".weight", width, ids);
  } else if (config.tied_unembedding) {
    const at::Tensor table = take.Again(embedding, weights->token_embedding, name + ".weight");
    if (table.defined()) weights->unembedding.weight = table.t();
  }
  if (has_bias) weights->unembedding.bias = take.Get(name + ".bias", {ids});
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_TAKE_LAYERS_H_
