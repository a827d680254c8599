// The subcommands of `hookline`, a file each.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_

#include <functional>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/interrupt.h"
#include "client/cpp/client.h"

namespace hookline::cli {

// The server to ask, and how to be heard by it.
struct ServerChoice {
  std::string address;
  client::TlsOptions tls;
  std::string token_file;  // empty: HOOKLINE_TOKEN of the environment, if that is set
};

// A client of the server. INVALID_ARGUMENT names the option that is wrong.
absl::StatusOr<std::unique_ptr<client::Client>> Connect(const ServerChoice& server);

// The command that the command line asks for: set by the subcommand that was named, called after parsing.
struct Invocation {
  Interrupt* interrupt = nullptr;  // outlives the program's work
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
void AddReadCommand(CLI::App& app, Invocation& invocation);
void AddExportCommand(CLI::App& app, Invocation& invocation);
void AddImportCommand(CLI::App& app, Invocation& invocation);
void AddTokenCommand(CLI::App& app, Invocation& invocation);
void AddTopCommand(CLI::App& app, Invocation& invocation);
void AddStopCommand(CLI::App& app, Invocation& invocation);
void AddHealthCommand(CLI::App& app, Invocation& invocation);

// The settings of the environment: HOOKLINE_SERVER, HOOKLINE_TLS, HOOKLINE_TLS_CA, HOOKLINE_TLS_CERT, HOOKLINE_TLS_KEY
// and HOOKLINE_TOKEN_FILE; else where hookline-server listens unless told otherwise.
ServerChoice DefaultServer();

// Declares --server, --token-file and those of TLS, which the program and every subcommand have, so that it may stand
// before or after their name.
void AddServerOption(CLI::App& command, Invocation& invocation);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_COMMANDS_H_
