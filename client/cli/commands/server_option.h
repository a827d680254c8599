// The server that a command asks: from flags, else from the environment.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/cpp/client.h"

namespace hookline::cli {

struct Invocation;

// A server's address, and the proof of who asks.
struct ServerChoice {
  std::string address;
  client::TlsOptions tls;
  std::string token_file;  // empty: HOOKLINE_TOKEN of the environment, if that is set
};

// The settings of the environment: HOOKLINE_SERVER, HOOKLINE_TLS, HOOKLINE_TLS_CA, HOOKLINE_TLS_CERT, HOOKLINE_TLS_KEY
// and HOOKLINE_TOKEN_FILE; else where hookline-server listens unless told otherwise.
ServerChoice DefaultServer();

// Declares --server, --token-file and those of TLS, which the program and every subcommand have, so that it may stand
// before or after their name.
void AddServerOption(CLI::App& command, Invocation& invocation);

// Makes a client of the server. INVALID_ARGUMENT names the option that is wrong.
absl::StatusOr<std::unique_ptr<client::Client>> Connect(const ServerChoice& server);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_
