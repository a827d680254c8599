#include "server/model/dictionary/sparsify.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/model/dictionary/dictionary_files.h"
#include "server/model/families/config_json.h"
#include "server/model/families/config_reader.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/weight_taker.h"

namespace hookline {
namespace {

constexpr char kConfigFile[] = "/cfg.json";
constexpr char kWeightsFile[] = "/sae.safetensors";

// sparsify names a directory after the module whose output it encodes. Returns "" unless that is a residual stream or
// an MLP under its usual name.
std::string HookPointOf(absl::string_view folder) {
  while (absl::ConsumeSuffix(&folder, "/")) {
  }
  folder.remove_prefix(folder.rfind('/') + 1);
  if (!absl::ConsumePrefix(&folder, "layers.") && !absl::ConsumePrefix(&folder, "h.")) return "";
  const bool is_mlp = absl::ConsumeSuffix(&folder, ".mlp");
  int layer = 0;
  if (!absl::SimpleAtoi(folder, &layer)) return "";
  return absl::StrCat("blocks.", layer, is_mlp ? ".hook_mlp_out" : ".hook_resid_post");
}

DictionaryConfig ReadConfig(const ConfigReader& config, DictionaryInfo* info) {
  info->width = info->output_width = config.Integer("d_in");
  const int64_t latents = config.Count("num_latents", 0);
  info->latents = latents != 0 ? latents : info->width * config.Integer("expansion_factor", 32);
  DictionaryConfig made;
  made.activation = DictionaryConfig::Activation::kTopK;
  made.k = info->max_active = config.Integer("k", 32, info->latents);
  if (config.Text("activation", "topk") != "topk") config.Refuse("activation", "only topk is supported");
  for (const char* flag : {"transcode", "skip_connection"}) {
    if (config.Flag(flag, false)) config.Refuse(flag, "transcoders are not supported, only autoencoders");
  }
  return made;
}

}  // namespace

bool IsSparsifyFolder(const std::string& folder) { return HoldsFiles(folder, kConfigFile, kWeightsFile); }

absl::StatusOr<std::shared_ptr<const Dictionary>> ReadSparsify(const std::string& name, const std::string& folder,
                                                               at::Device device) {
  const std::string path = folder + kConfigFile;
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadConfigJson(path));
  const ConfigReader reader(json, path);
  DictionaryInfo info;
  info.name = name;
  info.format = "sparsify";
  info.architecture = "topk";
  info.hook_point = HookPointOf(folder);
  const DictionaryConfig config = ReadConfig(reader, &info);
  RETURN_IF_ERROR(reader.status());
  ASSIGN_OR_RETURN(const StateDict state, ReadSafetensors(folder + kWeightsFile));
  WeightTaker take(state, device, at::kFloat);
  DictionaryWeights weights;
  weights.encoder = take.Linear("encoder.weight", info.width, info.latents);
  weights.encoder_bias = take.Get("encoder.bias", {info.latents});
  weights.decoder = take.Get("W_dec", {info.latents, info.width});
  weights.decoder_bias = take.Get("b_dec", {info.width});
  return MakeDictionary(std::move(info), config, std::move(weights), take, absl::StrCat("sparsify ", config.k));
}

}  // namespace hookline
