// The weights of GPT-Neo and GPT-J, which name and store them as GPT-2 does but for its fused projections.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_GPT_WEIGHTS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_GPT_WEIGHTS_H_

#include <string>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/families/take_layers.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

struct GptNames {
  std::string attention;  // "attn.": before the names of the projections
  Bias out_bias = Bias::kNone;
  std::string up;  // "mlp.c_fc"
  std::string down;
};

// Takes the weights of softmax attention without fused projections and of a dense MLP without gate. The embedding of
// positions and the second norm are taken where `config` has them.
DecoderWeights TakeGptWeights(const DecoderConfig& config, const GptNames& names, WeightTaker& take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_GPT_WEIGHTS_H_
