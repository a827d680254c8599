#include "server/model/decoder_config.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace hookline {
namespace {

// Prints every digit, since two models can differ in the last one.
std::string ToText(double number) { return absl::StrFormat("%.17g", number); }
std::string ToText(const std::string& text) { return text; }
template <typename Integer>
std::string ToText(Integer number) {
  return absl::StrCat(number);
}
std::string ToText(const std::vector<double>& numbers) {
  return absl::StrJoin(numbers, "/", [](std::string* out, double number) { absl::StrAppend(out, ToText(number)); });
}

template <typename... Values>
std::string Join(const Values&... values) {
  std::string text = ((ToText(values) + ",") + ...);
  text.pop_back();
  return text;
}

std::string ToText(const NormConfig& norm) { return Join(static_cast<int>(norm.kind), norm.epsilon, norm.weighted); }

std::string ToText(const SoftmaxAttentionConfig& c) {
  return absl::StrCat(
      "softmax:", Join(c.heads, c.key_value_heads, c.head_width, c.reach, c.rotary, c.scale, c.soft_cap, c.sinks,
                       ToText(c.query_key_norm.norm), static_cast<int>(c.query_key_norm.place),
                       static_cast<int>(c.query_key_norm.span), c.query_key_norm.factor, ToText(c.value_norm), c.clamp,
                       c.gated, c.key_value, c.keys_from, c.shares_keys, c.value_embedding_factor));
}

std::string ToText(const LatentAttentionConfig& c) {
  return absl::StrCat("latent:", Join(c.heads, c.query_rank, c.key_value_rank, c.plain_width, c.rotated_width,
                                      c.value_width, c.rotary, c.scale, ToText(c.rank_norm)));
}

std::string ToText(const GatedDeltaConfig& c) {
  return absl::StrCat("delta:", Join(c.key_heads, c.value_heads, c.key_width, c.value_width, c.kernel, ToText(c.norm)));
}

std::string ToText(const DenseConfig& c) {
  return absl::StrCat("dense:", Join(c.width, static_cast<int>(c.activation), c.gated));
}

std::string ToText(const ExpertsConfig& c) {
  return absl::StrCat("experts:", Join(c.experts, c.chosen, c.width, static_cast<int>(c.routing), c.renormalized,
                                       c.weight_factor, c.groups, c.chosen_groups, static_cast<int>(c.activation),
                                       c.limit, c.sharpness, c.shared_width, c.shared_gated));
}

}  // namespace

std::string RotaryConfig::ToString() const {
  return Join(dims, base, clockwise, static_cast<int>(pairs), static_cast<int>(scaling), factor, attention_factor,
              original_context, low_frequency_factor, high_frequency_factor, beta_fast, beta_slow, truncate,
              short_factor, long_factor, turning);
}

std::string DecoderConfig::ToString() const {
  std::string text =
      absl::StrCat("width=", width, " vocabulary_size=", vocabulary_size, " context_length=", context_length,
                   " embedding_width=", embedding_width, " embedding_scale=", ToText(embedding_scale),
                   " position_embedding=", position_embedding, " embedding_norm=", ToText(embedding_norm),
                   " per_layer_embedding=", per_layer_embedding.width, ",", per_layer_embedding.vocabulary_size, ",",
                   static_cast<int>(per_layer_embedding.activation), ",", ToText(per_layer_embedding.norm));
  absl::StrAppend(&text, " arrangement=", static_cast<int>(arrangement), " ln1=", ToText(ln1),
                  " ln1_post=", ToText(ln1_post), " ln2=", ToText(ln2), " ln2_post=", ToText(ln2_post),
                  " branch_scale=", ToText(branch_scale), " ln_final=", ToText(ln_final));
  for (const RotaryConfig& turn : rotary) absl::StrAppend(&text, " rotary=", turn.ToString());
  for (const LayerConfig& layer : layers) {
    absl::StrAppend(&text,
                    " layer=", std::visit([](const auto& attention) { return ToText(attention); }, layer.attention),
                    ";", std::visit([](const auto& feed_forward) { return ToText(feed_forward); }, layer.feed_forward));
  }
  return text;
}

}  // namespace hookline
