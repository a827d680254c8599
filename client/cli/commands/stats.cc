#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/any_server.h"
#include "client/cli/commands/capture_request.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/notes.h"
#include "client/cli/terminal/norm_chart.h"
#include "client/cli/transfer.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kDescription[] = "Prints and draws statistics of hook points' rows; no rows are sent";

constexpr char kFooter[] =
    R"(Examples:
  How the residual stream's norm grows over the layers:
    hookline stats --hook-points 'blocks.*.hook_resid_post' --dataset pile --sequence-length 256 --max-activations 100000
  Which rows stand out without position 0, where attention sinks are:
    hookline stats --hook-points 'blocks.*.hook_resid_post' --tokens ids.txt --skip-first 1

Quantiles are exact to 0.4 %. --json also prints the mean vectors.)";

struct StatsFlags : CaptureRequestFlags, TransferFlags {};

absl::Status Run(const StatsFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(v1::CaptureRequest request, MakeCaptureRequest(flags));
  request.set_statistics_only(true);
  // A feed belongs to one server.
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, request.has_feed() ? Connect(server) : ConnectAny(server));
  AnyServer any({client.get()});
  ASSIGN_OR_RETURN(const std::unique_ptr<TokenSource> tokens, OpenTokens(flags, any, server.address));
  Transfer transfer = CaptureTransfer(request, tokens.get(), *client);
  transfer.on_started = [](const v1::CaptureStarted& started, Progress& progress) {
    for (const std::string& note : NotesOfGrant(started)) progress.Note(absl::StrCat("hookline: ", note));
  };
  transfer.notes = [&](const CaptureResult& result) { return NotesOfEnd(request, tokens.get(), result); };
  transfer.table = StatisticsTable;
  return RunTransfer(flags, transfer, server.address, interrupt);
}

}  // namespace

void AddStatsCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("stats", kDescription);
  command->footer(kFooter);
  auto flags = std::make_shared<StatsFlags>();
  AddServerOption(*command, invocation);
  AddCaptureRequestOptions(*command, *flags, Feeds::kOffered);
  command->add_flag("--json", flags->json, "Print the statistics as JSON");
  command->add_flag("--quiet,-q", flags->quiet, "Show no progress");
  command->callback([flags, &invocation] {
    RequireSource(*flags);
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
