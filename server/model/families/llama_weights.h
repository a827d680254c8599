// Takes the weights of checkpoints whose names follow Llama's, as those of most families do.
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
  std::string prefix = "model.";  // prefix of `embed_tokens`, `layers` and `norm`
  std::string head = "lm_head";   // the unembedding, if there is one

  bool query_key_value_bias = false;
  bool attention_out_bias = false;
  bool mlp_bias = false;

  // The names of a layer's norms, where the configuration has them.
  const char* ln1 = "input_layernorm";
  const char* ln1_post = nullptr;
  const char* ln2 = "post_attention_layernorm";
  const char* ln2_post = nullptr;

  // The ways in which a norm's output is multiplied by its weight w.
  enum class NormWeight {
    kRounded,  // first rounded to the model's dtype, then multiplied by w
    kWide,     // multiplied by w in float32, then rounded
    kOnePlus,  // multiplied by 1 + w in float32, then rounded
  };
  NormWeight norm_weight = NormWeight::kRounded;

  // These take the parts that a family names or stores differently; `prefix` is the layer's. Null means as in Llama.
  std::function<AttentionWeights(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix)> attention;
  std::function<FeedForwardWeights(LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix)>
      feed_forward;
  // Takes the layer's other weights.
  std::function<void(LlamaTaker& llama, const LayerConfig& config, const std::string& prefix, LayerWeights* layer)>
      rest;
};

// Makes an architecture whose weights are taken by `names`.
Architecture WithLlamaNames(DecoderConfig config, LlamaNames names);

// The same, for a language model whose checkpoint also holds towers for images. Its names begin with
// `language_model.model.` or, in some versions of transformers, with `model.language_model.`. All other
// weights are ignored.
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
  // Takes `gate` and `experts` after `prefix`. The experts have a matrix each, `experts.j.{gate,up,down}_proj`, or are
  // joined, `experts.gate_up_proj` and `experts.down_proj`. `parts` gives the names of separate matrices.
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
