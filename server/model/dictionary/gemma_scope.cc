#include "server/model/dictionary/gemma_scope.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/model/dictionary/dictionary_files.h"
#include "server/model/load/npz_checkpoint.h"
#include "server/model/load/weight_taker.h"

namespace hookline {
namespace {

constexpr char kWeightsFile[] = "/params.npz";
constexpr char kRepository[] = "gemma-scope-";

// The parts of a path that describe a file: ".../gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71".
struct Place {
  std::string kind;  // the repository's name after its last hyphen: "res"
  int layer = -1;
  bool is_embedding = false;
};

Place PlaceOf(absl::string_view path) {
  Place place;
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    absl::string_view layer = part;
    int number = 0;
    if (absl::StrContains(part, kRepository)) place.kind = std::string(part.substr(part.rfind('-') + 1));
    if (absl::ConsumePrefix(&layer, "layer_") && absl::SimpleAtoi(layer, &number)) place.layer = number;
    if (part == "embedding") place.is_embedding = true;
  }
  return place;
}

std::string HookPointOf(const Place& place) {
  if (place.layer < 0) return "";
  if (place.kind == "res") return absl::StrCat("blocks.", place.layer, ".hook_resid_post");
  if (place.kind == "mlp") return absl::StrCat("blocks.", place.layer, ".hook_mlp_out");
  if (place.kind == "att") return absl::StrCat("blocks.", place.layer, ".attn.hook_z");
  return "";
}

}  // namespace

bool IsGemmaScope(const std::string& path) {
  return absl::EndsWith(path, ".npz") || access((path + kWeightsFile).c_str(), F_OK) == 0;
}

absl::StatusOr<std::shared_ptr<const Dictionary>> ReadGemmaScope(const std::string& name, const std::string& path,
                                                                 at::Device device) {
  const std::string file = absl::EndsWith(path, ".npz") ? path : path + kWeightsFile;
  const Place place = PlaceOf(path);
  const auto refused = [&](absl::string_view why) {
    return absl::FailedPreconditionError(absl::StrCat(file, ": ", why));
  };
  if (place.kind == "transcoders") return refused("transcoders are not supported, only autoencoders");
  if (place.is_embedding) return refused("autoencoders of the embedding, whose rows are scaled, are not supported");
  ASSIGN_OR_RETURN(const StateDict state, ReadNpz(file));
  const auto encoder = state.tensors.find("W_enc");
  if (encoder == state.tensors.end() || encoder->second.dim() != 2) {
    return refused(
        "array W_enc is missing or does not have two dimensions; Gemma Scope's files hold W_enc, W_dec, b_enc, "
        "b_dec and threshold");
  }
  DictionaryInfo info;
  info.name = name;
  info.format = "gemma_scope";
  info.architecture = "jumprelu";
  info.hook_point = HookPointOf(place);
  info.width = info.output_width = encoder->second.size(0);
  info.latents = encoder->second.size(1);
  DictionaryConfig config;
  config.activation = DictionaryConfig::Activation::kJumpRelu;
  config.subtracts_decoder_bias = false;
  WeightTaker take(state, device, at::kFloat);
  DictionaryWeights weights;
  weights.encoder = take.Get("W_enc", {info.width, info.latents});
  weights.encoder_bias = take.Get("b_enc", {info.latents});
  weights.decoder = take.Get("W_dec", {info.latents, info.width});
  weights.decoder_bias = take.Get("b_dec", {info.width});
  weights.threshold = take.Get("threshold", {info.latents});
  return MakeDictionary(std::move(info), config, std::move(weights), take, "gemma_scope");
}

}  // namespace hookline
