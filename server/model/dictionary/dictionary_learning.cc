#include "server/model/dictionary/dictionary_learning.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/model/dictionary/dictionary_files.h"
#include "server/model/families/config_json.h"
#include "server/model/families/config_reader.h"
#include "server/model/load/torch_checkpoint.h"
#include "server/model/load/weight_taker.h"

namespace hookline {
namespace {

using Activation = DictionaryConfig::Activation;

constexpr char kConfigFile[] = "/config.json";
constexpr char kWeightsFile[] = "/ae.pt";

// A class of the library: the names of its weights, and what it computes.
struct DictionaryClass {
  const char* name;
  Activation activation;
  bool subtracts_decoder_bias;
  bool has_linears;          // weights are named encoder.weight and decoder.weight, not W_enc and W_dec
  const char* encoder_bias;  // kGated: the bias of the magnitudes
  const char* decoder_bias;
};

constexpr DictionaryClass kClasses[] = {
    {"AutoEncoder", Activation::kRelu, true, true, "encoder.bias", "bias"},
    {"AutoEncoderNew", Activation::kRelu, false, true, "encoder.bias", "decoder.bias"},
    {"GatedAutoEncoder", Activation::kGated, true, true, "mag_bias", "decoder_bias"},
    {"JumpReluAutoEncoder", Activation::kJumpRelu, false, false, "b_enc", "b_dec"},
    {"AutoEncoderTopK", Activation::kTopK, true, true, "encoder.bias", "b_dec"},
    {"BatchTopKSAE", Activation::kJumpRelu, true, true, "encoder.bias", "b_dec"},
    {"MatryoshkaBatchTopKSAE", Activation::kJumpRelu, true, false, "b_enc", "b_dec"},
};

std::string HookPointOf(absl::string_view submodule) {
  int layer = 0;
  if (!absl::ConsumePrefix(&submodule, "resid_post_layer_") || !absl::SimpleAtoi(submodule, &layer)) return "";
  return absl::StrCat("blocks.", layer, ".hook_resid_post");
}

// Takes one threshold for each latent, or one for all of them.
at::Tensor TakeThreshold(WeightTaker& take, int64_t latents) {
  at::Tensor threshold = take.Wide("threshold", {});
  if (!threshold.defined()) return threshold;
  return threshold.numel() == 1 ? threshold.reshape({1}).expand({latents}).contiguous()
                                : take.Wide("threshold", {latents});
}

DictionaryWeights TakeWeights(const DictionaryClass& kind, const DictionaryInfo& info, WeightTaker& take) {
  const int64_t width = info.width, latents = info.latents;
  DictionaryWeights weights;
  if (kind.has_linears) {
    weights.encoder = take.Linear("encoder.weight", width, latents);
    weights.decoder = take.Linear("decoder.weight", latents, width);
  } else {
    weights.encoder = take.Get("W_enc", {width, latents});
    weights.decoder = take.Get("W_dec", {latents, width});
  }
  weights.encoder_bias = take.Get(kind.encoder_bias, {latents});
  weights.decoder_bias = take.Get(kind.decoder_bias, {width});
  if (kind.activation == Activation::kGated) {
    weights.gate_bias = take.Get("gate_bias", {latents});
    weights.magnitude = take.Get("r_mag", {latents});
    if (weights.magnitude.defined()) weights.magnitude = weights.magnitude.exp();
  }
  if (kind.activation == Activation::kJumpRelu) weights.threshold = TakeThreshold(take, latents);
  // Buffers that repeat the configuration, or that only training uses.
  for (const char* buffer : {"k", "threshold", "group_sizes"}) {
    if (take.Has(buffer)) take.Ignore(buffer);
  }
  return weights;
}

// Scales latents so that each equals the length of what it adds to a row, as the library does when it loads this class.
void ScaleToUnitDecoder(DictionaryWeights* weights) {
  const at::Tensor norms = weights->decoder.norm(2, at::IntArrayRef{1});
  weights->decoder = weights->decoder / norms.unsqueeze(1);
  weights->encoder = weights->encoder * norms;
  weights->encoder_bias = weights->encoder_bias * norms;
}

}  // namespace

bool IsDictionaryLearningFolder(const std::string& folder) { return HoldsFiles(folder, kConfigFile, kWeightsFile); }

absl::StatusOr<std::shared_ptr<const Dictionary>> ReadDictionaryLearning(const std::string& name,
                                                                         const std::string& folder, at::Device device) {
  const std::string path = folder + kConfigFile;
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadConfigJson(path));
  const ConfigReader reader(json, path);
  const ConfigReader trainer = reader.Object("trainer");
  DictionaryInfo info;
  info.name = name;
  info.format = "dictionary_learning";
  info.architecture = trainer.Text("dict_class");
  info.width = info.output_width = trainer.Integer("activation_dim");
  info.latents = trainer.Integer("dict_size");
  info.hook_point = HookPointOf(trainer.Text("submodule_name", ""));
  const DictionaryClass* kind = nullptr;
  for (const DictionaryClass& one : kClasses) {
    if (info.architecture == one.name) kind = &one;
  }
  if (kind == nullptr) trainer.Refuse("dict_class", "only the library's autoencoders are supported");
  DictionaryConfig config;
  if (kind != nullptr && kind->activation == Activation::kTopK) {
    config.k = info.max_active = trainer.Integer("k", std::nullopt, info.latents);
  }
  RETURN_IF_ERROR(reader.status());
  config.activation = kind->activation;
  config.subtracts_decoder_bias = kind->subtracts_decoder_bias;
  ASSIGN_OR_RETURN(const StateDict state, ReadTorchCheckpoint(folder + kWeightsFile));
  WeightTaker take(state, device, at::kFloat);
  DictionaryWeights weights = TakeWeights(*kind, info, take);
  if (info.architecture == "AutoEncoder" && take.Finish().ok()) ScaleToUnitDecoder(&weights);
  const std::string computation = absl::StrCat(info.architecture, " ", config.k);
  return MakeDictionary(std::move(info), config, std::move(weights), take, computation);
}

}  // namespace hookline
