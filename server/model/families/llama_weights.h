// Weights of the checkpoints whose names follow Llama's: Llama, Mistral, Qwen, Gemma, OLMo 2.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_LLAMA_WEIGHTS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_LLAMA_WEIGHTS_H_

#include <string>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/weight_taker.h"

namespace hookline {

struct LlamaNames {
  std::string prefix = "model.";        // before `embed_tokens`, `layers` and `norm`
  std::string head = "lm_head.weight";  // the unembedding, if it is there

  bool query_key_value_bias = false;
  bool attention_out_bias = false;
  bool mlp_bias = false;

  // The norms' names in a layer, for those that the configuration has.
  const char* ln1 = "input_layernorm";
  const char* ln1_post = nullptr;
  const char* ln2 = "post_attention_layernorm";
  const char* ln2_post = nullptr;

  // How a norm's output is multiplied.
  enum class NormWeight {
    kRounded,  // rounded to the model's dtype, then by w
    kWide,     // in float32 by w, then rounded
    kOnePlus,  // in float32 by 1 + w, then rounded
  };
  NormWeight norm_weight = NormWeight::kRounded;
};

// Query/key norms are there where the configuration has them.
DecoderWeights TakeLlamaWeights(const DecoderConfig& config, const LlamaNames& names, WeightTaker& take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_LLAMA_WEIGHTS_H_
