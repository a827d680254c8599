#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

bool HasSeveralDevices(const v1::Model& model) {
  return model.replicas_size() > 1 || (model.replicas_size() == 1 && model.replicas(0).stages_size() > 1);
}

std::vector<std::vector<std::string>> ReplicaRows(const v1::ListModelsResponse& response) {
  std::vector<std::vector<std::string>> rows = {
      {"model", "replica", "device", "blocks", "weight bytes", "state", "load", "tokens"}};
  for (const v1::Model& model : response.models()) {
    for (int i = 0; i < model.replicas_size(); ++i) {
      const v1::Replica& replica = model.replicas(i);
      for (int s = 0; s < replica.stages_size(); ++s) {
        const v1::Stage& stage = replica.stages(s);
        // The first stage's row shows the columns that belong to the whole replica.
        const bool is_first = s == 0;
        rows.push_back({is_first ? model.name() : "", is_first ? WithCommas(i) : "", stage.device(),
                        absl::StrCat(stage.first_block(), "-", stage.first_block() + stage.blocks() - 1),
                        WithCommas(stage.weight_bytes()),
                        !is_first        ? ""
                        : replica.lost() ? "lost"
                                         : "serving",
                        is_first ? absl::StrFormat("%.0f %%", 100 * replica.load()) : "",
                        is_first ? WithCommas(replica.tokens()) : ""});
      }
    }
  }
  return rows;
}

absl::Status Run(const ServerChoice& server) {
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, ConnectAny(server));
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
  const bool has_several = std::any_of(response->models().begin(), response->models().end(), HasSeveralDevices);
  if (has_several) std::fputs(("\n" + Table(ReplicaRows(*response))).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddModelsCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("models", "Lists the models that the server holds");
  AddServerOption(*command, invocation);
  command->callback([&invocation] { invocation.run = [&invocation] { return Run(invocation.server); }; });
}

}  // namespace hookline::cli
