#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/report.h"
#include "client/cpp/client.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

absl::Status Run(const ServerChoice& server, const std::string& model_name, bool aliases) {
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, ConnectAny(server));
  absl::StatusOr<v1::Model> model = client->GetModel(model_name);
  if (!model.ok()) return ExplainUnavailable(model.status(), server.address);
  std::vector<std::vector<std::string>> rows = {{"hook point", "width", "layer"}};
  for (const v1::HookPoint& point : model->hook_points()) {
    rows.push_back({point.name(), absl::StrCat(point.width()), absl::StrCat(point.layer())});
  }
  // Descriptions come last and are not padded, so they are not a column of the table.
  std::vector<std::string> lines = absl::StrSplit(Table(rows), '\n', absl::SkipEmpty());
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string text =
        i == 0 ? "description" : Escaped(model->hook_points(static_cast<int>(i) - 1).description());
    std::fputs(absl::StrCat(lines[i], "  ", text, "\n").c_str(), stdout);
    if (i == 0 || !aliases) continue;
    for (const std::string& alias : model->hook_points(static_cast<int>(i) - 1).aliases()) {
      std::fputs(absl::StrCat("  = ", Escaped(alias), "\n").c_str(), stdout);
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddHooksCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("hooks", "Lists a model's hook points, in the order of the forward pass");
  auto model = std::make_shared<std::string>();
  auto aliases = std::make_shared<bool>(false);
  AddServerOption(*command, invocation);
  command->add_option("--model", *model, "The model's name; not needed if the server holds only one")
      ->type_name("NAME");
  command->add_flag("--aliases", *aliases, "Also list the other names of each hook point");
  command->callback([model, aliases, &invocation] {
    invocation.run = [model, aliases, &invocation] { return Run(invocation.server, *model, *aliases); };
  });
}

}  // namespace hookline::cli
