#include "server/model/families/hugging_face.h"

#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status.h"
#include "server/model/checkpoint/checkpoint_folder.h"
#include "server/model/decoder.h"
#include "server/model/families/config_json.h"
#include "server/model/families/config_reader.h"
#include "server/model/families/family.h"
#include "server/model/families/weight_names.h"
#include "server/model/memory.h"
#include "server/model/weight_taker.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

struct NamedFamily {
  const char* model_type;
  ReadFamily read;
};

constexpr NamedFamily kFamilies[] = {
    {"gemma", ReadGemma},        {"gemma2", ReadGemma2},   {"gemma3", ReadGemma3Multimodal},
    {"gemma3_text", ReadGemma3}, {"gpt2", ReadGpt2},       {"gpt_neox", ReadGptNeox},
    {"llama", ReadLlama},        {"mistral", ReadMistral}, {"olmo2", ReadOlmo2},
    {"qwen2", ReadQwen2},        {"qwen3", ReadQwen3},
};

void RefuseQuantized(const ConfigReader& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (!config.Has(key)) continue;
    const ConfigReader quantization = config.Object(key);
    if (quantization.Has("quant_method")) {
      quantization.Refuse("quant_method", "quantised weights are not read; floating-point ones are");
    } else {
      config.Refuse(key,
                    "quantised weights are not read, and this does not say how they are; where the weights are "
                    "floating-point ones, take the field out");
    }
  }
}

absl::StatusOr<Architecture> ReadArchitecture(const Json& json, const std::string& path, std::string* model_type) {
  const ConfigReader config(json, path);
  *model_type = config.Text("model_type");
  RETURN_IF_ERROR(config.status());
  for (const NamedFamily& family : kFamilies) {
    if (*model_type != family.model_type) continue;
    RefuseQuantized(config);
    Architecture architecture = family.read(config);
    RETURN_IF_ERROR(config.status());
    return architecture;
  }
  config.Refuse("model_type", absl::StrCat(absl::StrJoin(kFamilies, ", ",
                                                         [](std::string* out, const NamedFamily& family) {
                                                           absl::StrAppend(out, family.model_type);
                                                         }),
                                           " are computed; another decoder can be loaded as TorchScript"));
  return config.status();
}

std::string Describe(const RotaryConfig& rotary) {
  std::string text = absl::StrCat("rotary ", rotary.dims, " base ", rotary.base);
  if (rotary.scaling == RotaryConfig::Scaling::kLinear) absl::StrAppend(&text, " linear x", rotary.factor);
  if (rotary.scaling == RotaryConfig::Scaling::kLlama3) absl::StrAppend(&text, " llama3 x", rotary.factor);
  return text;
}

// What changes activations and is not seen from the sizes.
std::string Describe(const DecoderConfig& config) {
  std::vector<std::string> parts;
  if (config.parallel) parts.push_back("parallel blocks");
  for (const RotaryConfig& rotary : config.rotary) parts.push_back(Describe(rotary));
  int windows = 0;
  int64_t window = 0;
  for (const LayerConfig& layer : config.layers) {
    if (layer.reach < 0) continue;
    ++windows;
    window = layer.reach + 1;
  }
  if (windows > 0) {
    parts.push_back(absl::StrCat("window ", window, " on ", windows, " of ", config.layers.size(), " layers"));
  }
  if (config.attention_soft_cap != 0) parts.push_back(absl::StrCat("attention soft cap ", config.attention_soft_cap));
  if (config.query_key_norm.norm.kind != NormConfig::Kind::kNone) parts.push_back("query/key norm");
  return absl::StrJoin(parts, ", ");
}

}  // namespace

bool IsHuggingFaceFolder(const std::string& folder) { return access((folder + "/config.json").c_str(), F_OK) == 0; }

absl::StatusOr<std::unique_ptr<Model>> LoadHuggingFace(const ModelOptions& options, ModelInfo info, at::Device device,
                                                       at::ScalarType dtype) {
  const std::string path = options.path + "/config.json";
  ASSIGN_OR_RETURN(const Json json, ReadConfigJson(path));
  ASSIGN_OR_RETURN(Architecture architecture, ReadArchitecture(json, path, &info.architecture));
  ASSIGN_OR_RETURN(StateDict state, ReadCheckpointFolder(options.path));
  // The family of a larger model knows its names itself.
  if (!json.contains("text_config")) UnifyNames(&state);
  RETURN_IF_ERROR(CheckMemory({{info.name, info.device, WeightBytes(state, dtype)}}, MemoryOf));
  WeightTaker take(state, device, dtype);
  DecoderWeights weights = architecture.take_weights(architecture.config, take);
  const std::string not_read = IgnoreOtherHeads(take);
  RETURN_IF_ERROR(take.Finish());
  info.details = Describe(architecture.config);
  if (!not_read.empty()) absl::StrAppend(&info.details, "; ", not_read);
  if (json.contains("auto_map")) {
    info.warning =
        absl::StrCat("config.json names code of its own (auto_map), which is not run: activations are those of ",
                     info.architecture, " as transformers has it");
  }
  ASSIGN_OR_RETURN(info.fingerprint, take.Fingerprint(architecture.config.ToString()));
  info.parameters = take.parameters();
  return std::make_unique<Decoder>(std::move(info), std::move(architecture.config), std::move(weights), dtype);
}

}  // namespace hookline
