#include <cstdio>

#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/names.h"
#include "client/cli/terminal/report.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

absl::Status Run(const ServerChoice& server) {
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(server));
  absl::StatusOr<v1::ListModelsResponse> response = client->ListModels();
  if (!response.ok()) return ExplainUnavailable(response.status(), server.address);
  std::vector<std::vector<std::string>> rows = {{"model", "architecture", "layers", "width", "heads", "context",
                                                 "vocabulary", "parameters", "dtype", "device", "fingerprint"}};
  for (const v1::Model& model : response->models()) {
    const std::string architecture =
        model.variant().empty() ? model.architecture() : model.architecture() + " " + model.variant();
    rows.push_back({model.name(), architecture, WithCommas(model.layers()), WithCommas(model.width()),
                    WithCommas(model.heads()), WithCommas(model.context_length()), WithCommas(model.vocabulary_size()),
                    WithCommas(model.parameters()), DtypeName(model.dtype()), model.device(), model.fingerprint()});
  }
  std::fputs(Table(rows).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddModelsCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("models", "Lists the models that the server holds");
  AddServerOption(*command, invocation);
  command->callback([&invocation] { invocation.run = [&invocation] { return Run(invocation.server); }; });
}

}  // namespace hookline::cli
