// `hookline models` and `hookline hooks`.
#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

const char* Name(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return "float32";
    case v1::DTYPE_BFLOAT16:
      return "bfloat16";
    case v1::DTYPE_FLOAT16:
      return "float16";
    default:
      return "?";
  }
}

absl::Status ShowModels(const CommonOptions& common) {
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, client::Client::Connect(common.server));
  ASSIGN_OR_RETURN(const v1::ListModelsResponse response, client->ListModels());
  for (const v1::Model& model : response.models()) {
    absl::PrintF("%s\n", model.name());
    absl::PrintF("  architecture  %s, variant %s\n", model.architecture(), model.variant());
    if (!model.details().empty()) absl::PrintF("  details       %s\n", model.details());
    absl::PrintF("  shape         %d layers, width %d, %d heads (%d for keys and values)\n", model.layers(),
                 model.width(), model.heads(), model.key_value_heads());
    absl::PrintF("  tokens        vocabulary of %d, sequences up to %d\n", model.vocabulary_size(),
                 model.context_length());
    absl::PrintF("  weights       %d parameters, %s on %s, fingerprint %s\n", model.parameters(), Name(model.dtype()),
                 model.device(), model.fingerprint());
  }
  return absl::OkStatus();
}

absl::Status ShowHooks(const CommonOptions& common) {
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, client::Client::Connect(common.server));
  ASSIGN_OR_RETURN(const v1::Model model, client->GetModel(common.model));
  size_t longest = 0;
  for (const v1::HookPoint& hook_point : model.hook_points()) longest = std::max(longest, hook_point.name().size());
  for (const v1::HookPoint& hook_point : model.hook_points()) {
    absl::PrintF("%-*s  %6d  %s\n", static_cast<int>(longest), hook_point.name(), hook_point.width(),
                 hook_point.description());
  }
  return absl::OkStatus();
}

}  // namespace

void AddModelCommands(CLI::App& app, CommonOptions& common, Run* run) {
  CLI::App* models = app.add_subcommand("models", "Shows the models that the server holds");
  models->callback([&common, run] { *run = [&common] { return ShowModels(common); }; });

  CLI::App* hooks = app.add_subcommand("hooks", "Shows a model's hook points: name, width, what it is");
  hooks->add_option("--model", common.model, "The model; needed where the server holds several");
  hooks->callback([&common, run] { *run = [&common] { return ShowHooks(common); }; });
}

}  // namespace hookline::cli
