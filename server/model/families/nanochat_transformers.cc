// nanochat as transformers writes it: the architecture of the first models with Llama's names and with norms that have
// no weights. nanochat.h reads nanochat's own checkpoints.
#include <utility>
#include <variant>

#include "server/model/families/config_fields.h"
#include "server/model/families/family.h"
#include "server/model/families/llama_weights.h"
#include "server/model/families/rope_fields.h"

namespace hookline {

Architecture ReadNanochat(const ConfigReader& config) {
  ShapeDefaults defaults;
  defaults.activation = "relu2";
  DecoderConfig decoder = ReadLlamaShape(config, defaults);
  decoder.ln1.weighted = false;
  decoder.ln2 = decoder.ln_final = decoder.embedding_norm = decoder.ln1;
  RotaryDefaults rotary;
  rotary.context_length = decoder.context_length;
  decoder.rotary = {ReadRotary(config, FirstAttention(decoder).head_width, rotary)};
  decoder.rotary[0].clockwise = true;
  for (LayerConfig& layer : decoder.layers) {
    layer.softmax().query_key_norm = {decoder.ln1, QueryKeyNormConfig::Place::kAfterRotary};
    std::get<DenseConfig>(layer.feed_forward).gated = false;
  }
  if (!config.IsNull("final_logit_softcapping")) decoder.logit_soft_cap = config.Number("final_logit_softcapping", 15);
  LlamaNames names;
  names.query_key_value_bias = names.attention_out_bias = config.Flag("attention_bias", false);
  names.feed_forward = [](LlamaTaker& llama, const LayerConfig& layer, const std::string& prefix) {
    const int64_t d = llama.width(), width = std::get<DenseConfig>(layer.feed_forward).width;
    DenseWeights mlp;
    mlp.up = llama.Linear(prefix + "mlp.fc1", d, width, /*bias=*/false);
    mlp.down = llama.Linear(prefix + "mlp.fc2", width, d, /*bias=*/false);
    return mlp;
  };
  return WithLlamaNames(std::move(decoder), std::move(names));
}

}  // namespace hookline
