// `hookline`, the command-line client of Hookline servers.

#include <cstdio>

#include "CLI/CLI.hpp"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/interrupt.h"
#include "server/base/escape.h"
#include "server/base/freed_memory.h"

namespace {

constexpr char kDescription[] =
    "Captures a language model's activations from a Hookline server.\n\n"
    "  hookline models                      lists the models\n"
    "  hookline hooks                       lists what can be captured\n"
    "  hookline capture --hook-points 'blocks.*.hook_resid_post' --text 'The cat sat' --out rows\n"
    "  hookline stats --hook-points 'blocks.*.hook_resid_post' --dataset pile --sequence-length 256\n";

constexpr char kFooter[] =
    "`hookline COMMAND --help` describes a command.\n\n"
    "Results go to standard output, progress and errors to standard error.\n\n"
    "Exit codes: 0 done; 1 the server or the disk failed; 2 the request is wrong: flags, tokens, or a name that the "
    "server does not know; 3 no server answers, or it went away for good; 130 interrupted.";

int Main(int argc, const char* const* argv) {
  using namespace hookline::cli;
  hookline::KeepFreedMemory();
  Interrupt interrupt;
  Invocation invocation{&interrupt, DefaultServer(), nullptr};
  CLI::App app(kDescription, "hookline");
  app.footer(kFooter);
  app.set_version_flag("--version", HOOKLINE_VERSION);
  app.require_subcommand(1);
  AddServerOption(app, invocation);
  AddModelsCommand(app, invocation);
  AddHooksCommand(app, invocation);
  AddTokenizeCommand(app, invocation);
  AddCaptureCommand(app, invocation);
  AddStatsCommand(app, invocation);
  AddScoreCommand(app, invocation);
  AddExamplesCommand(app, invocation);
  AddPersistCommand(app, invocation);
  AddRecordingsCommand(app, invocation);
  AddReadCommand(app, invocation);
  AddVerifyCommand(app, invocation);
  AddMergeCommand(app, invocation);
  AddExportCommand(app, invocation);
  AddImportCommand(app, invocation);
  AddTopCommand(app, invocation);
  AddStopCommand(app, invocation);
  AddHealthCommand(app, invocation);
  AddTokenCommand(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::fprintf(stderr, "hookline: %s; see hookline --help\n", hookline::Escaped(error.what()).c_str());
    return kExitUsage;
  }
  const absl::Status status = invocation.run();
  if (!status.ok()) std::fprintf(stderr, "hookline: %s\n", ErrorLine(status).c_str());
  return ExitCodeOf(status);
}

}  // namespace

int main(int argc, char** argv) { return Main(argc, argv); }
