// The server that a command uses, from the flags or else the environment.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_

#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/server_fleet.h"

namespace hookline::cli {

struct Invocation;

// The addresses of servers, and the caller's credentials.
struct ServerChoice {
  std::string address;  // of one or several servers, in the form of client/cpp/endpoints.h
  client::TlsOptions tls;
  std::string token_file;  // empty: HOOKLINE_TOKEN of the environment, if that is set
};

// Returns the settings of the environment: HOOKLINE_SERVER, HOOKLINE_TLS, HOOKLINE_TLS_CA, HOOKLINE_TLS_CERT,
// HOOKLINE_TLS_KEY and HOOKLINE_TOKEN_FILE. The default address is hookline-server's.
ServerChoice DefaultServer();

// Declares --server, --token-file and the TLS options. The program and every subcommand have them, so they can stand
// before or after the subcommand's name.
void AddServerOption(CLI::App& command, Invocation& invocation);

// Returns a client of the server. INVALID_ARGUMENT names the wrong option, also if --server names several servers.
absl::StatusOr<std::unique_ptr<client::Client>> Connect(const ServerChoice& server);

// Returns a client of the first server that answers, for requests that all answer alike. UNAVAILABLE if none answers.
absl::StatusOr<std::unique_ptr<client::Client>> ConnectAny(const ServerChoice& server);

// With kSpread, a DNS name stands for a server at each of its addresses.
enum class Names { kKept, kSpread };

// Returns a client of each server, for one capture over all of them.
absl::StatusOr<std::vector<client::NamedServer>> ConnectAll(const ServerChoice& server, Names names);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_
