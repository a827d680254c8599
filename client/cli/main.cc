// `hookline`, the command-line client.
#include <signal.h>
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "client/cli/command.h"

namespace hookline::cli {
namespace {

constexpr char kDescription[] =
    "Captures activations from a Hookline server.\n\n"
    "  hookline models                                   what the server holds\n"
    "  hookline hooks                                    what can be captured\n"
    "  hookline capture --hook-points 'blocks.*.hook_resid_post' --tokens ids.txt --out rows\n";

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 error; 2 the command line is wrong; 3 no server there; 130 interrupted.";

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitError;
  }
}

// One line, whatever the server or the system wrote.
std::string OneLine(absl::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return line;
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  CLI::App app(kDescription, "hookline");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.set_version_flag("--version", HOOKLINE_VERSION);
  CommonOptions common;
  common.server = "127.0.0.1:7471";
  app.add_option("--server", common.server, "Where the server listens, HOST:PORT")
      ->envname("HOOKLINE_SERVER")
      ->capture_default_str();
  app.fallthrough();
  Run run;
  AddModelCommands(app, common, &run);
  AddCaptureCommand(app, common, &run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const absl::Status status = run();
  if (!status.ok()) {
    std::fprintf(stderr, "hookline: %s\n", OneLine(status.message()).c_str());
    if (status.code() == absl::StatusCode::kUnavailable) {
      std::fprintf(stderr, "hookline: is a server listening at %s? Name another with --server HOST:PORT\n",
                   common.server.c_str());
    }
  }
  return ExitCode(status);
}

}  // namespace
}  // namespace hookline::cli

int main(int argc, char** argv) { return hookline::cli::Main(argc, argv); }
