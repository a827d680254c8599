// Weights of the checkpoints whose names follow Llama's, which most families' do.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_LLAMA_WEIGHTS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_LLAMA_WEIGHTS_H_

#include <functional>
#include <string>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/families/family.h"
#include "server/model/families/take_layers.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

class LlamaTaker;

struct LlamaNames {
  std::string prefix = "model.";  // before `embed_tokens`, `layers` and `norm`
  std::string head = "lm_head";   // the unembedding, if it is there

  bool query_key_value_bias = false;
  bool attention_out_bias = false;
  bool mlp_bias = false;

  // The norms' names in a layer, for those that the configuration has.
  const char* ln1 = "input_layernorm";
  const char* ln1_post = nullptr;
  const char* ln2 = "post_attention_layernorm";
  const char* ln2_post = nullptr;

  // The way in which a norm's output is multiplied.
  enum class NormWeight {
    kRounded,  // rounded to the model's dtype, then by w
    kWide,     // in float32 by w, then rounded
    kOnePlus,  // in float32 by 1 + w, then rounded
  };
  NormWeight norm_weight = NormWeight::kRounded;

  // These take the parts that a family names or stores in its own way; `prefix` is the layer's. Null: as Llama.
  std::function<AttentionWeights(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix)> attention;
  std::function<FeedForwardWeights(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix)>
      feed_forward;
  // Takes what a layer has besides.
  std::function<void(LlamaTaker& llama, const std::string& prefix, LayerWeights* layer)> rest;
};

// An architecture whose weights are taken by `names`.
Architecture WithLlamaNames(DecoderConfig config, LlamaNames names);

// The same of a language model that stands beside towers for images: its names begin with `language_model.model.` or,
// as some versions of transformers write them, with `model.language_model.`. Text does not need the rest.
Architecture WithLlamaNamesBesideTowers(DecoderConfig config, LlamaNames names);

// `names` must outlive it.
class LlamaTaker {
 public:
  LlamaTaker(const DecoderConfig& config, const LlamaNames& names, WeightTaker& take)
      : take(take), config_(config), names_(names) {}

  DecoderWeights All();

  NormWeights Norm(const std::string& name, int64_t width);
  LinearWeights Linear(const std::string& name, int64_t in, int64_t out, bool bias) {
    return TakeLinear(take, name, in, out, BiasIf(bias));
  }
  // `self_attn.{q,k,v,o}_proj`, and `{q,k}_norm` where the configuration has them.
  SoftmaxAttentionWeights Attention(const SoftmaxAttentionConfig& attention, const std::string& prefix);
  // `{gate,up,down}_proj` after `prefix`.
  DenseWeights Mlp(int64_t width, const std::string& prefix);
  // `gate` and `experts` after `prefix`, in either layout: a matrix each, `experts.j.{gate,up,down}_proj`, or all in
  // one, `experts.gate_up_proj` and `experts.down_proj`. `parts`: what a matrix each is called.
  struct ExpertParts {
    const char* gate = "gate_proj";
    const char* up = "up_proj";
    const char* down = "down_proj";
  };
  ExpertsWeights Experts(const ExpertsConfig& experts, const std::string& prefix, const ExpertParts& parts);

  const DecoderConfig& config() const { return config_; }
  int64_t width() const { return config_.width; }

  WeightTaker& take;

 private:
  LayerWeights Layer(int layer);

  const DecoderConfig& config_;
  const LlamaNames& names_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_LLAMA_WEIGHTS_H_
