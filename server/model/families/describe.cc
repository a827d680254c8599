#include "server/model/families/describe.h"

#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hookline {
namespace {

std::string Describe(const RotaryConfig& rotary) {
  std::string text = absl::StrCat("rotary ", rotary.dims, " base ", rotary.base);
  switch (rotary.scaling) {
    case RotaryConfig::Scaling::kNone:
      return text;
    case RotaryConfig::Scaling::kLinear:
      return absl::StrCat(text, " linear x", rotary.factor);
    case RotaryConfig::Scaling::kLlama3:
      return absl::StrCat(text, " llama3 x", rotary.factor);
    case RotaryConfig::Scaling::kYarn:
      return absl::StrCat(text, " yarn x", rotary.factor, " from ", rotary.original_context);
    case RotaryConfig::Scaling::kLongRope:
      return absl::StrCat(text, " longrope beyond ", rotary.original_context);
    case RotaryConfig::Scaling::kProportional:
      return absl::StrCat(text, " of which ", 2 * rotary.turning, " turn");
  }
  return text;
}

// "4 of 12 layers".
std::string OfLayers(size_t some, const DecoderConfig& config) {
  return absl::StrCat(some, " of ", config.layers.size(), " layers");
}

std::string DescribeExperts(const DecoderConfig& config) {
  size_t layers = 0;
  const ExpertsConfig* experts = nullptr;
  for (const LayerConfig& layer : config.layers) {
    const auto* one = std::get_if<ExpertsConfig>(&layer.feed_forward);
    if (one == nullptr) continue;
    ++layers;
    experts = one;
  }
  if (experts == nullptr) return "";
  return absl::StrCat(experts->chosen, " of ", experts->experts, " experts on ", OfLayers(layers, config));
}

}  // namespace

std::string DescribeDecoder(const DecoderConfig& config) {
  std::vector<std::string> parts;
  if (config.arrangement == DecoderConfig::Arrangement::kParallel) parts.push_back("parallel blocks");
  if (config.arrangement == DecoderConfig::Arrangement::kPostNorm) parts.push_back("norms after the residual sums");
  for (const RotaryConfig& rotary : config.rotary) parts.push_back(Describe(rotary));
  size_t windows = 0, deltas = 0, latents = 0;
  int64_t window = 0;
  double soft_cap = 0;
  bool normed = false;
  for (const LayerConfig& layer : config.layers) {
    deltas += std::holds_alternative<GatedDeltaConfig>(layer.attention);
    latents += std::holds_alternative<LatentAttentionConfig>(layer.attention);
    const auto* attention = std::get_if<SoftmaxAttentionConfig>(&layer.attention);
    if (attention == nullptr) continue;
    normed = normed || attention->query_key_norm.norm.kind != NormConfig::Kind::kNone;
    soft_cap = attention->soft_cap;
    if (attention->reach < 0) continue;
    ++windows;
    window = attention->reach + 1;
  }
  if (windows > 0) parts.push_back(absl::StrCat("window ", window, " on ", OfLayers(windows, config)));
  if (deltas > 0) parts.push_back(absl::StrCat("gated delta rule on ", OfLayers(deltas, config)));
  if (latents > 0) parts.push_back("latent attention");
  if (soft_cap != 0) parts.push_back(absl::StrCat("attention soft cap ", soft_cap));
  if (normed) parts.push_back("query/key norm");
  if (const std::string experts = DescribeExperts(config); !experts.empty()) parts.push_back(experts);
  return absl::StrJoin(parts, ", ");
}

}  // namespace hookline
