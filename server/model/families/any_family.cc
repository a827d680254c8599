#include "server/model/families/any_family.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

void CheckComputed(const ConfigReader& config, const std::string& model_type) {
  // transformers 5 then attends both ways.
  if (!config.Flag("is_causal", true)) config.Refuse("is_causal", "attention that looks ahead is not computed");
  if (config.Flag("add_cross_attention", false)) config.Refuse("add_cross_attention", "only false is computed");
  if (config.Has("per_layer_config") && !absl::StartsWith(model_type, "gemma4")) {
    config.Refuse("per_layer_config", "sizes that differ by layer are not computed in this family");
  }
}

}  // namespace

void CheckFieldsOfAnyFamily(const ConfigReader& config, std::string* warning) {
  const std::string model_type = config.Text("model_type", "");
  CheckComputed(config, model_type);
  CheckComputed(config.Object("text_config"), model_type);
  if (!config.Object("auto_map").empty()) {
    *warning = absl::StrCat("config.json names code of its own (auto_map), which is not run: this is computed as ",
                            model_type);
  }
}

}  // namespace hookline
