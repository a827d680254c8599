#include "server/model/families/hugging_face.h"

#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status.h"
#include "server/model/decoder.h"
#include "server/model/families/any_family.h"
#include "server/model/families/config_json.h"
#include "server/model/families/config_reader.h"
#include "server/model/families/describe.h"
#include "server/model/families/family.h"
#include "server/model/families/weight_names.h"
#include "server/model/load/checkpoint_folder.h"
#include "server/model/load/memory_check.h"
#include "server/model/load/stages.h"
#include "server/model/load/weight_taker.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// Says whether a config.json without `tie_word_embeddings` ties the unembedding to the embedding.
enum class Ties { kNo, kYes };

struct NamedFamily {
  const char* model_type;
  ReadFamily read;
  Ties ties = Ties::kNo;
};

constexpr NamedFamily kFamilies[] = {
    {"deepseek_v3", ReadDeepseekV3},
    {"gemma", ReadGemma, Ties::kYes},
    {"gemma2", ReadGemma2, Ties::kYes},
    {"gemma3", ReadGemma3Multimodal, Ties::kYes},
    {"gemma3_text", ReadGemma3, Ties::kYes},
    {"gemma4", ReadGemma4, Ties::kYes},
    {"gemma4_text", ReadGemma4, Ties::kYes},
    {"gpt2", ReadGpt2, Ties::kYes},
    {"gpt_neo", ReadGptNeo, Ties::kYes},
    {"gpt_neox", ReadGptNeox},
    {"gpt_oss", ReadGptOss},
    {"gptj", ReadGptj},
    {"granite", ReadGranite},
    {"llama", ReadLlama},
    {"ministral", ReadMistral},
    {"mistral", ReadMistral},
    {"mistral3", ReadMistral3, Ties::kYes},
    {"mixtral", ReadMixtral},
    {"nanochat", ReadNanochat},
    {"olmo2", ReadOlmo2},
    {"olmo3", ReadOlmo3},
    {"olmoe", ReadOlmoe},
    {"opt", ReadOpt, Ties::kYes},
    {"phi", ReadPhi},
    {"phi3", ReadPhi3},
    {"qwen2", ReadQwen2},
    {"qwen3", ReadQwen3},
    {"qwen3_5", ReadQwen35},
    {"qwen3_5_moe", ReadQwen35Moe},
    {"qwen3_5_moe_text", ReadQwen35Moe},
    {"qwen3_5_text", ReadQwen35},
    {"qwen3_moe", ReadQwen3Moe},
    {"smollm3", ReadSmolLm3, Ties::kYes},
};

void RefuseQuantized(const ConfigReader& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (!config.Has(key)) continue;
    const ConfigReader quantization = config.Object(key);
    // This is the one format that a family reads.
    if (config.Text("model_type", "") == "gpt_oss" && quantization.Text("quant_method", "") == "mxfp4") continue;
    if (quantization.Has("quant_method")) {
      quantization.Refuse("quant_method", "quantised weights are not supported, only floating-point ones");
    } else {
      config.Refuse(key,
                    "quantised weights are not supported, and this field does not name their format; if the "
                    "weights are floating-point, remove the field");
    }
  }
}

// Returns whether a checkpoint without an unembedding uses the embedding as one.
bool ReadTied(const ConfigReader& config, Ties ties) {
  const bool by_text = config.Has("text_config") && !config.Has("tie_word_embeddings");
  const ConfigReader reader = by_text ? config.Object("text_config") : config;
  return reader.Flag("tie_word_embeddings", ties == Ties::kYes);
}

absl::StatusOr<Architecture> ReadArchitecture(const Json& json, const std::string& path, ModelInfo* info) {
  const ConfigReader config(json, path);
  info->architecture = config.Text("model_type");
  CheckFieldsOfAnyFamily(config, &info->warning);
  RETURN_IF_ERROR(config.status());
  for (const NamedFamily& family : kFamilies) {
    if (info->architecture != family.model_type) continue;
    RefuseQuantized(config);
    Architecture architecture = family.read(config);
    architecture.config.tied_unembedding = ReadTied(config, family.ties);
    RETURN_IF_ERROR(config.status());
    return architecture;
  }
  config.Refuse("model_type", absl::StrCat(absl::StrJoin(kFamilies, ", ",
                                                         [](std::string* out, const NamedFamily& family) {
                                                           absl::StrAppend(out, family.model_type);
                                                         }),
                                           " are supported; another decoder can be loaded as TorchScript"));
  return config.status();
}

// A checkpoint whose files are opened, but whose weights are not yet read.
struct Checkpoint {
  ModelInfo info;
  Architecture architecture;
  StateDict state;
};

absl::StatusOr<Checkpoint> Open(const ModelOptions& options, ModelInfo info) {
  const std::string path = options.path + "/config.json";
  Checkpoint checkpoint{std::move(info), {}, {}};
  ASSIGN_OR_RETURN(const Json json, ReadConfigJson(path));
  ASSIGN_OR_RETURN(checkpoint.architecture, ReadArchitecture(json, path, &checkpoint.info));
  ASSIGN_OR_RETURN(checkpoint.state, ReadCheckpointFolder(options.path));
  // The family of a model with a text_config handles the names itself.
  if (!json.contains("text_config")) UnifyNames(&checkpoint.state);
  if (const auto& is_beside = checkpoint.architecture.is_beside) {
    absl::erase_if(checkpoint.state.tensors, [&](const auto& named) { return is_beside(named.first); });
  }
  return checkpoint;
}

// Takes every weight. Sets `not_read` to a text that names the weights that are not part of the model.
absl::StatusOr<DecoderWeights> TakeAll(const Architecture& architecture, WeightTaker& take, std::string* not_read) {
  DecoderWeights weights = architecture.take_weights(architecture.config, take);
  *not_read = IgnoreOtherHeads(take);
  RETURN_IF_ERROR(take.Finish());
  return weights;
}

// Returns the bytes that the weights will take on their devices. Completes `stages`.
absl::StatusOr<std::vector<MemoryNeed>> Count(const ModelOptions& options, const Checkpoint& checkpoint,
                                              at::ScalarType dtype, std::vector<Stage>* stages) {
  WeightTaker count(checkpoint.state, at::kCPU, dtype, WeightTaker::Mode::kCount);
  TakeToStages(*stages, &count);
  count.set_evaluates(options.evaluation);
  std::string not_read;
  RETURN_IF_ERROR(TakeAll(checkpoint.architecture, count, &not_read).status());
  return PlaceWeights(ModelName(options), count.taken(), static_cast<int>(checkpoint.architecture.config.layers.size()),
                      stages);
}

// Rotation works at any position, unlike learned positions. The fingerprint does not change, since no row does.
void AllowLongerSequences(int64_t wanted, DecoderConfig* config, ModelInfo* info) {
  if (wanted <= config->context_length || config->position_embedding) return;
  absl::StrAppend(&info->warning, info->warning.empty() ? "" : "; ", "sequences of up to ", wanted,
                  " tokens are allowed, but config.json says that the model was made for ", config->context_length);
  config->context_length = wanted;
}

}  // namespace

bool IsHuggingFaceFolder(const std::string& folder) { return access((folder + "/config.json").c_str(), F_OK) == 0; }

absl::StatusOr<std::vector<MemoryNeed>> CountHuggingFace(const ModelOptions& options, std::vector<Stage> stages,
                                                         at::ScalarType dtype) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Open(options, ModelInfo{}));
  return Count(options, checkpoint, dtype, &stages);
}

absl::StatusOr<std::unique_ptr<Model>> LoadHuggingFace(const ModelOptions& options, ModelInfo known,
                                                       at::ScalarType dtype, std::vector<Stage>* stages) {
  ASSIGN_OR_RETURN(Checkpoint checkpoint, Open(options, std::move(known)));
  ModelInfo& info = checkpoint.info;
  Architecture& architecture = checkpoint.architecture;
  ASSIGN_OR_RETURN(const std::vector<MemoryNeed> needs, Count(options, checkpoint, dtype, stages));
  RETURN_IF_ERROR(CheckMemory(needs, MemoryOf));
  WeightTaker take(checkpoint.state, at::Device(stages->front().device), dtype);
  TakeToStages(*stages, &take);
  take.set_evaluates(options.evaluation);
  info.no_logits = options.evaluation ? "has no unembedding in its checkpoint" : kLoadedWithoutEvaluation;
  std::string not_read;
  ASSIGN_OR_RETURN(DecoderWeights weights, TakeAll(architecture, take, &not_read));
  info.details = DescribeDecoder(architecture.config);
  if (!not_read.empty()) absl::StrAppend(&info.details, "; ", not_read);
  ASSIGN_OR_RETURN(info.fingerprint, take.Fingerprint(architecture.config.ToString()));
  info.parameters = take.parameters();
  AllowLongerSequences(options.max_sequence_length, &architecture.config, &info);
  return std::make_unique<Decoder>(std::move(info), std::move(architecture.config), std::move(weights), dtype, *stages);
}

}  // namespace hookline
