#include "server/model/families/llama_weights.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

class LlamaTaker {
 public:
  LlamaTaker(const LlamaNames& names, WeightTaker& take) : names_(names), take_(take) {}

  LinearWeights Linear(const std::string& name, int64_t in, int64_t out, bool bias) {
    LinearWeights weights;
    weights.weight = take_.Linear(name + ".weight", in, out);
    if (bias) weights.bias = take_.Get(name + ".bias", {out});
    return weights;
  }

  NormWeights Norm(const std::string& name, int64_t width) {
    NormWeights norm;
    if (names_.norm_weight == LlamaNames::NormWeight::kRounded) {
      norm.weight = take_.Get(name + ".weight", {width});
    } else {
      norm.weight = take_.Wide(name + ".weight", {width});
      if (names_.norm_weight == LlamaNames::NormWeight::kOnePlus && norm.weight.defined()) {
        norm.weight = norm.weight + 1;
      }
    }
    return norm;
  }

  NormWeights NormIf(const NormConfig& config, const std::string& layer, const char* name, int64_t width) {
    if (config.kind == NormConfig::Kind::kNone) return {};
    return Norm(layer + name, width);
  }

  LayerWeights Layer(const DecoderConfig& config, const std::string& prefix) {
    const int64_t d = config.width;
    const int64_t queries = config.heads * config.head_width, keys = config.key_value_heads * config.head_width;
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    LayerWeights layer;
    layer.ln1 = NormIf(config.ln1, prefix, names_.ln1, d);
    layer.ln1_post = NormIf(config.ln1_post, prefix, names_.ln1_post, d);
    layer.ln2 = NormIf(config.ln2, prefix, names_.ln2, d);
    layer.ln2_post = NormIf(config.ln2_post, prefix, names_.ln2_post, d);
    layer.query = Linear(attention + "q_proj", d, queries, names_.query_key_value_bias);
    layer.key = Linear(attention + "k_proj", d, keys, names_.query_key_value_bias);
    layer.value = Linear(attention + "v_proj", d, keys, names_.query_key_value_bias);
    layer.attention_out = Linear(attention + "o_proj", queries, d, names_.attention_out_bias);
    const bool per_head = config.query_key_norm.span == QueryKeyNormConfig::Span::kHead;
    layer.query_norm = NormIf(config.query_key_norm.norm, attention, "q_norm", per_head ? config.head_width : queries);
    layer.key_norm = NormIf(config.query_key_norm.norm, attention, "k_norm", per_head ? config.head_width : keys);
    layer.gate = Linear(mlp + "gate_proj", d, config.mlp_width, names_.mlp_bias);
    layer.up = Linear(mlp + "up_proj", d, config.mlp_width, names_.mlp_bias);
    layer.down = Linear(mlp + "down_proj", config.mlp_width, d, names_.mlp_bias);
    take_.Ignore(attention + "rotary_emb.inv_freq");
    return layer;
  }

 private:
  const LlamaNames& names_;
  WeightTaker& take_;
};

}  // namespace

DecoderWeights TakeLlamaWeights(const DecoderConfig& config, const LlamaNames& names, WeightTaker& take) {
  LlamaTaker llama(names, take);
  DecoderWeights weights;
  weights.token_embedding = take.Table(names.prefix + "embed_tokens.weight", {config.vocabulary_size, config.width});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    weights.layers.push_back(llama.Layer(config, absl::StrCat(names.prefix, "layers.", i, ".")));
  }
  weights.ln_final = llama.Norm(names.prefix + "norm", config.width);
  take.Ignore(names.prefix + "rotary_emb.inv_freq");
  // Not there where it is the embedding's.
  if (take.Has(names.head)) take.Ignore(names.head, {config.vocabulary_size, config.width});
  return weights;
}

}  // namespace hookline
