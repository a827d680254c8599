#include "server/model/decoder_config.h"

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

std::string ToText(const NormConfig& norm) {
  return absl::StrCat(static_cast<int>(norm.kind), ",", norm.epsilon, ",", norm.weighted);
}

}  // namespace

std::string DecoderConfig::ToString() const {
  std::string text =
      absl::StrCat("width=", width, " heads=", heads, " key_value_heads=", key_value_heads, " head_width=", head_width,
                   " mlp_width=", mlp_width, " vocabulary_size=", vocabulary_size, " context_length=", context_length,
                   " embedding_scale=", embedding_scale, " position_embedding=", position_embedding,
                   " embedding_norm=", ToText(embedding_norm), " parallel=", parallel, " ln1=", ToText(ln1),
                   " ln1_post=", ToText(ln1_post), " ln2=", ToText(ln2));
  absl::StrAppend(&text, " ln2_post=", ToText(ln2_post), " ln_final=", ToText(ln_final),
                  " query_key_norm=", ToText(query_key_norm.norm), ",", static_cast<int>(query_key_norm.place), ",",
                  static_cast<int>(query_key_norm.span), ",", query_key_norm.factor,
                  " attention_soft_cap=", attention_soft_cap, " value_embedding_factor=", value_embedding_factor,
                  " activation=", static_cast<int>(activation), " gated=", gated);
  for (const RotaryConfig& turn : rotary) {
    absl::StrAppend(&text, " rotary=", turn.dims, ",", turn.base, ",", turn.clockwise, ",",
                    static_cast<int>(turn.scaling), ",", turn.factor, ",", turn.low_frequency_factor, ",",
                    turn.high_frequency_factor, ",", turn.original_context);
  }
  for (const LayerConfig& layer : layers) {
    absl::StrAppend(&text, " layer=", layer.reach, ",", layer.rotary, ",", layer.attention_scale);
  }
  return text;
}

}  // namespace hookline
