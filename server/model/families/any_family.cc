#include "server/model/families/any_family.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

void CheckComputed(const ConfigReader& config, const std::string& model_type) {
  // With false, transformers 5 attends in both directions.
  if (!config.Flag("is_causal", true)) config.Refuse("is_causal", "attention that looks ahead is not supported");
  if (config.Flag("add_cross_attention", false)) config.Refuse("add_cross_attention", "only false is supported");
  if (config.Has("per_layer_config") && !absl::StartsWith(model_type, "gemma4")) {
    config.Refuse("per_layer_config", "sizes that differ by layer are not supported in this family");
  }
}

}  // namespace

void CheckFieldsOfAnyFamily(const ConfigReader& config, std::string* warning) {
  const std::string model_type = config.Text("model_type", "");
  CheckComputed(config, model_type);
  CheckComputed(config.Object("text_config"), model_type);
  if (!config.Object("auto_map").empty()) {
    *warning = absl::StrCat("config.json names its own code (auto_map), which is not run: the model is computed as ",
                            model_type);
  }
}

}  // namespace hookline
