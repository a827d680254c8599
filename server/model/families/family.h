// Each family of Hugging Face checkpoints reads a config.json and takes the weights by their names. There is one file
// per family; server/model/README.md explains how to add one.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_FAMILY_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_FAMILY_H_

#include <functional>
#include <string>

#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/families/config_reader.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

struct Architecture {
  DecoderConfig config;
  // Takes every weight of a checkpoint with this configuration; errors are the taker's.
  std::function<DecoderWeights(const DecoderConfig& config, WeightTaker& take)> take_weights;
  // Returns whether the tensor of that name does not belong to the language model (towers for images, heads that
  // predict several tokens), so that it is not read. Null if a checkpoint has no such tensors.
  std::function<bool(const std::string& name)> is_beside = nullptr;
};

// Each function reads a config.json of its `model_type`. A value that is not supported becomes an error of the reader;
// the result is then undefined.
using ReadFamily = Architecture (*)(const ConfigReader& config);

Architecture ReadGpt2(const ConfigReader& config);
Architecture ReadGptNeox(const ConfigReader& config);
Architecture ReadLlama(const ConfigReader& config);
Architecture ReadMistral(const ConfigReader& config);
Architecture ReadMistral3(const ConfigReader& config);
Architecture ReadNanochat(const ConfigReader& config);
Architecture ReadQwen2(const ConfigReader& config);
Architecture ReadQwen3(const ConfigReader& config);
Architecture ReadGemma(const ConfigReader& config);
Architecture ReadGemma2(const ConfigReader& config);
Architecture ReadGemma3(const ConfigReader& config);
Architecture ReadGemma3Multimodal(const ConfigReader& config);
Architecture ReadOlmo2(const ConfigReader& config);
Architecture ReadOlmo3(const ConfigReader& config);
Architecture ReadQwen3Moe(const ConfigReader& config);
Architecture ReadMixtral(const ConfigReader& config);
Architecture ReadOlmoe(const ConfigReader& config);
Architecture ReadQwen35(const ConfigReader& config);
Architecture ReadQwen35Moe(const ConfigReader& config);
Architecture ReadGptOss(const ConfigReader& config);
Architecture ReadPhi3(const ConfigReader& config);
Architecture ReadPhi(const ConfigReader& config);
Architecture ReadGptNeo(const ConfigReader& config);
Architecture ReadGptj(const ConfigReader& config);
Architecture ReadOpt(const ConfigReader& config);
Architecture ReadSmolLm3(const ConfigReader& config);
Architecture ReadGranite(const ConfigReader& config);
Architecture ReadGemma4(const ConfigReader& config);
Architecture ReadDeepseekV3(const ConfigReader& config);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_FAMILY_H_
