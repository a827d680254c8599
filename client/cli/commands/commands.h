// The subcommands of `hookline`. Each has a file of its own.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_

#include <functional>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "client/cli/commands/server_option.h"
#include "client/cli/interrupt.h"

namespace hookline::cli {

// The command to run. The subcommand that the command line names sets `run`; the program calls it after parsing.
struct Invocation {
  Interrupt* interrupt = nullptr;  // outlives the command
  ServerChoice server;
  std::function<absl::Status()> run;
};

void AddModelsCommand(CLI::App& app, Invocation& invocation);
void AddHooksCommand(CLI::App& app, Invocation& invocation);
void AddTokenizeCommand(CLI::App& app, Invocation& invocation);
void AddCaptureCommand(CLI::App& app, Invocation& invocation);
void AddStatsCommand(CLI::App& app, Invocation& invocation);
void AddScoreCommand(CLI::App& app, Invocation& invocation);
void AddExamplesCommand(CLI::App& app, Invocation& invocation);
void AddPersistCommand(CLI::App& app, Invocation& invocation);
void AddRecordingsCommand(CLI::App& app, Invocation& invocation);
void AddVerifyCommand(CLI::App& app, Invocation& invocation);
void AddMergeCommand(CLI::App& app, Invocation& invocation);
void AddReadCommand(CLI::App& app, Invocation& invocation);
void AddExportCommand(CLI::App& app, Invocation& invocation);
void AddImportCommand(CLI::App& app, Invocation& invocation);
void AddTokenCommand(CLI::App& app, Invocation& invocation);
void AddTopCommand(CLI::App& app, Invocation& invocation);
void AddStopCommand(CLI::App& app, Invocation& invocation);
void AddHealthCommand(CLI::App& app, Invocation& invocation);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_
