#include "server/model/dictionary/sae_lens.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/model/dictionary/dictionary_files.h"
#include "server/model/families/config_json.h"
#include "server/model/families/config_reader.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/weight_taker.h"

namespace hookline {
namespace {

using Activation = DictionaryConfig::Activation;
using Normalization = DictionaryConfig::Normalization;

constexpr char kConfigFile[] = "/cfg.json";
constexpr char kSkipTranscoder[] = "skip_transcoder";
constexpr char kJumpReluSkipTranscoder[] = "jumprelu_skip_transcoder";
constexpr char kWeightsFile[] = "/sae_weights.safetensors";

// Versions before 6 have the hook point beside the sizes. Their top-k dictionaries are standard ones with another
// activation function.
void ReadActivation(const ConfigReader& config, DictionaryInfo* info, DictionaryConfig* made) {
  info->architecture = config.Text("architecture", "standard");
  made->is_transcoder = absl::EndsWith(info->architecture, "transcoder");
  const std::string function = config.Text("activation_fn_str", config.Text("activation_fn", "relu"));
  if (info->architecture == "standard" && function == "topk") info->architecture = "topk";
  if (info->architecture == "standard" || info->architecture == "transcoder" || info->architecture == kSkipTranscoder) {
    made->activation = Activation::kRelu;
  } else if (info->architecture == "gated") {
    made->activation = Activation::kGated;
  } else if (info->architecture == "jumprelu" || info->architecture == "jumprelu_transcoder" ||
             info->architecture == kJumpReluSkipTranscoder) {
    made->activation = Activation::kJumpRelu;
  } else if (info->architecture == "topk") {
    made->activation = Activation::kTopK;
    made->k = config.Has("k") ? config.Integer("k", std::nullopt, info->latents)
                              : config.Object("activation_fn_kwargs").Integer("k", std::nullopt, info->latents);
    info->max_active = made->k;
  } else {
    config.Refuse("architecture",
                  "standard, gated, jumprelu, topk, transcoder, skip_transcoder, jumprelu_transcoder and "
                  "jumprelu_skip_transcoder are supported");
  }
  if (info->architecture != "topk" && function != "relu") {
    config.Refuse(config.Has("activation_fn_str") ? "activation_fn_str" : "activation_fn", "only relu is supported");
  }
}

void ReadNormalization(const ConfigReader& config, DictionaryConfig* made) {
  const std::string kind = config.Text("normalize_activations", "none");
  if (kind == "layer_norm") {
    made->normalization = Normalization::kLayerNorm;
  } else if (kind == "constant_norm_rescale") {
    made->normalization = Normalization::kConstantNorm;
  } else if (kind != "none" && kind != "expected_average_only_in") {
    // SAELens itself ignores expected_average_only_in once a dictionary is trained.
    config.Refuse("normalize_activations",
                  "none, expected_average_only_in, layer_norm and constant_norm_rescale are supported");
  }
}

DictionaryConfig ReadConfig(const ConfigReader& config, DictionaryInfo* info) {
  DictionaryConfig made;
  info->width = config.Integer("d_in");
  info->latents = config.Integer("d_sae");
  ReadActivation(config, info, &made);
  ReadNormalization(config, &made);
  made.subtracts_decoder_bias = config.Flag("apply_b_dec_to_input", !made.is_transcoder);
  if (made.is_transcoder && made.subtracts_decoder_bias) {
    config.Refuse("apply_b_dec_to_input", "a transcoder's bias belongs to its output, not to its input");
  }
  made.scales_by_decoder_norm = config.Flag("rescale_acts_by_decoder_norm", false);
  if (made.scales_by_decoder_norm && made.activation != Activation::kTopK) {
    config.Refuse("rescale_acts_by_decoder_norm", "only topk supports it");
  }
  if (config.Flag("finetuning_scaling_factor", false)) {
    config.Refuse("finetuning_scaling_factor", "scaling after fine-tuning is not supported");
  }
  const ConfigReader metadata = config.Object("metadata");
  const ConfigReader& place = metadata.Has("hook_name") ? metadata : config;
  info->hook_point = place.Text("hook_name", place.Text("hook_point", ""));
  if (place.Has("hook_head_index")) info->head = static_cast<int>(place.Count("hook_head_index", 0));
  info->output_width = info->width;
  if (!made.is_transcoder) return made;
  info->output_width = config.Integer("d_out");
  info->output_point = place.Text("hook_name_out");
  if (place.Has("hook_head_index_out"))
    place.Refuse("hook_head_index_out", "only transcoders to whole rows are supported");
  return made;
}

DictionaryWeights TakeWeights(const DictionaryInfo& info, const DictionaryConfig& config, WeightTaker& take) {
  const int64_t width = info.width, latents = info.latents;
  DictionaryWeights weights;
  weights.encoder = take.Get("W_enc", {width, latents});
  weights.decoder = take.Get("W_dec", {latents, info.output_width});
  weights.decoder_bias = take.Get("b_dec", {info.output_width});
  if (info.architecture == kSkipTranscoder || info.architecture == kJumpReluSkipTranscoder) {
    weights.skip = take.Get("W_skip", {info.output_width, width});
  }
  if (config.activation == Activation::kGated) {
    weights.encoder_bias = take.Get("b_mag", {latents});
    weights.gate_bias = take.Get("b_gate", {latents});
    weights.magnitude = take.Get("r_mag", {latents});
    if (weights.magnitude.defined()) weights.magnitude = weights.magnitude.exp();
  } else {
    weights.encoder_bias = take.Get("b_enc", {latents});
  }
  if (config.activation == Activation::kJumpRelu) weights.threshold = take.Get("threshold", {latents});
  // Versions before 6 always save it; the configuration says whether it is used.
  if (take.Has("scaling_factor")) take.Ignore("scaling_factor", {latents});
  return weights;
}

}  // namespace

bool IsSaeLensFolder(const std::string& folder) { return HoldsFiles(folder, kConfigFile, kWeightsFile); }

absl::StatusOr<std::shared_ptr<const Dictionary>> ReadSaeLens(const std::string& name, const std::string& folder,
                                                              at::Device device) {
  const std::string path = folder + kConfigFile;
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadConfigJson(path));
  const ConfigReader reader(json, path);
  DictionaryInfo info;
  info.name = name;
  info.format = "sae_lens";
  const DictionaryConfig config = ReadConfig(reader, &info);
  RETURN_IF_ERROR(reader.status());
  ASSIGN_OR_RETURN(const StateDict state, ReadSafetensors(folder + kWeightsFile));
  WeightTaker take(state, device, at::kFloat);
  DictionaryWeights weights = TakeWeights(info, config, take);
  std::string computation = absl::StrCat(info.architecture, " ", config.k, " ", static_cast<int>(config.normalization),
                                         " ", config.subtracts_decoder_bias, " ", config.scales_by_decoder_norm);
  if (info.head >= 0) absl::StrAppend(&computation, " head ", info.head);
  return MakeDictionary(std::move(info), config, std::move(weights), take, computation);
}

}  // namespace hookline
