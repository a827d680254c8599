// Takes the weights of GPT-Neo and GPT-J. Names and layout are GPT-2's, except that no projections are fused.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_GPT_WEIGHTS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_GPT_WEIGHTS_H_

#include <string>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/families/take_layers.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

struct GptNames {
  std::string attention;  // "attn.": the prefix of the projections' names
  Bias out_bias = Bias::kNone;
  std::string up;  // "mlp.c_fc"
  std::string down;
};

// Takes the weights of softmax attention with separate projections and of a dense MLP without gate. The position
// embedding and the second norm are taken if `config` has them.
DecoderWeights TakeGptWeights(const DecoderConfig& config, const GptNames& names, WeightTaker& take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_GPT_WEIGHTS_H_
