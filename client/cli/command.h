// What the subcommands of `hookline` share.
#ifndef HOOKLINE_CLIENT_CLI_COMMAND_H_
#define HOOKLINE_CLIENT_CLI_COMMAND_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace hookline::cli {

// Exit codes, as --help tells them.
inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitUnavailable = 3;
inline constexpr int kExitInterrupted = 130;

// Options of every subcommand.
struct CommonOptions {
  std::string server;
  std::string model;
};

// What main runs once the command line is parsed.
using Run = std::function<absl::Status()>;

// Each adds its subcommand to `app` and sets `*run` when it was chosen. `common` outlives the call.
void AddModelCommands(CLI::App& app, CommonOptions& common, Run* run);
void AddCaptureCommand(CLI::App& app, CommonOptions& common, Run* run);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMAND_H_
