#include <memory>
#include <string>

#include "client/cli/commands/commands.h"
#include "client/cli/commands/recording_read.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(Examples:
  The first 100000 rows, in a random order that the seed determines:
    hookline read pile-resid --hook-points 'blocks.{2,5}.*' --row-count 100000 --shuffle-seed 1 --out rows
  Only measure how fast rows come, without writing files:
    hookline read pile-resid

The files have the form of hookline capture's.)";

absl::Status Run(const RecordingReadFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(server));
  ASSIGN_OR_RETURN(Transfer transfer, MakeRecordingRead(flags, *client));
  return RunTransfer(flags, transfer, server.address, interrupt);
}

}  // namespace

void AddReadCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("read", "Reads rows of a recording into safetensors files");
  command->footer(kFooter);
  auto flags = std::make_shared<RecordingReadFlags>();
  AddServerOption(*command, invocation);
  AddRecordingReadOptions(*command, *flags);
  command->add_option("--max-activations", flags->max_activations, "The most rows of each hook point")
      ->type_name("ROWS");
  command
      ->add_option("--max-activations-for", flags->max_activations_for,
                   "Another --max-activations for one hook point. Repeatable")
      ->type_name("NAME=ROWS")
      ->allow_extra_args(false);
  command
      ->add_option("--shuffle-seed", flags->shuffle_seed, "Take the rows in a random order that this seed determines")
      ->type_name("N");
  CLI::Option* out =
      command->add_option("--out", flags->out, "Directory for the files. Without it rows are only counted")
          ->type_name("DIR");
  command->add_flag("--provenance", flags->provenance, "Also write where each row comes from")->needs(out);
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
