// Takes the small layers that many checkpoints store in the same way: `NAME.weight` and `NAME.bias`.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_TAKE_LAYERS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_TAKE_LAYERS_H_

#include <cstdint>
#include <string>

#include "server/model/decoder_weights.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

enum class Bias { kNone, kThere };

inline Bias BiasIf(bool there) { return there ? Bias::kThere : Bias::kNone; }

// Stored as (out, in).
inline LinearWeights TakeLinear(WeightTaker& take, const std::string& name, int64_t in, int64_t out, Bias bias) {
  LinearWeights weights;
  weights.weight = take.Linear(name + ".weight", in, out);
  if (bias == Bias::kThere) weights.bias = take.Get(name + ".bias", {out});
  return weights;
}

// With weight and bias, multiplied in float32.
inline NormWeights TakeLayerNorm(WeightTaker& take, const std::string& name, int64_t width) {
  return {take.Wide(name + ".weight", {width}), take.Wide(name + ".bias", {width})};
}

// The outputs `first` ... `first + count - 1` of `all`, a view.
inline LinearWeights Outputs(const LinearWeights& all, int64_t first, int64_t count) {
  LinearWeights part;
  if (all.weight.defined()) part.weight = all.weight.narrow(1, first, count);
  if (all.bias.defined()) part.bias = all.bias.narrow(0, first, count);
  return part;
}

// The unembedding `name`, which no hook point needs; it is not there where it is the embedding's.
inline void IgnoreHead(WeightTaker& take, const std::string& name, int64_t vocabulary_size, int64_t width) {
  if (take.Has(name + ".weight")) take.Ignore(name + ".weight", {vocabulary_size, width});
  if (take.Has(name + ".bias")) take.Ignore(name + ".bias", {vocabulary_size});
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_TAKE_LAYERS_H_
