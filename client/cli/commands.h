// The subcommands of `hookline`, a file each.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_H_

#include <functional>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/interrupt.h"
#include "client/cpp/client.h"

namespace hookline::cli {

// What the command line asks for: set by the subcommand that was named, called after parsing.
struct Invocation {
  Interrupt* interrupt = nullptr;  // outlives the program's work
  std::function<absl::Status()> run;
};

void AddModelsCommand(CLI::App& app, Invocation& invocation);
void AddHooksCommand(CLI::App& app, Invocation& invocation);
void AddCaptureCommand(CLI::App& app, Invocation& invocation);

// Where hookline-server listens unless told otherwise.
inline constexpr char kDefaultServer[] = "127.0.0.1:7471";

// Declares --server, which every subcommand has.
void AddServerOption(CLI::App& command, std::string& address);

// `status`, where it says that there is no server, with what to do about it.
absl::Status ExplainUnavailable(const absl::Status& status, const std::string& address);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_H_
