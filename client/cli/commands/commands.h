// The subcommands of `hookline`, a file each.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_

#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "client/cli/interrupt.h"

namespace hookline::cli {

// The command that the command line asks for: set by the subcommand that was named, called after parsing.
struct Invocation {
  Interrupt* interrupt = nullptr;  // outlives the program's work
  std::string server;
  std::function<absl::Status()> run;
};

void AddModelsCommand(CLI::App& app, Invocation& invocation);
void AddHooksCommand(CLI::App& app, Invocation& invocation);
void AddCaptureCommand(CLI::App& app, Invocation& invocation);
void AddPersistCommand(CLI::App& app, Invocation& invocation);
void AddRecordingsCommand(CLI::App& app, Invocation& invocation);
void AddVerifyCommand(CLI::App& app, Invocation& invocation);
void AddReadCommand(CLI::App& app, Invocation& invocation);
void AddExportCommand(CLI::App& app, Invocation& invocation);
void AddImportCommand(CLI::App& app, Invocation& invocation);

// HOOKLINE_SERVER of the environment, else where hookline-server listens unless told otherwise.
std::string DefaultServer();

// Declares --server, which the program and every subcommand have, so that it may stand before or after their name.
void AddServerOption(CLI::App& command, Invocation& invocation);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_
