// The server that a command asks: from flags, else from the environment.
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

// The addresses of servers, and the proof of who asks.
struct ServerChoice {
  std::string address;  // as client/cpp/endpoints.h reads it: of one or several
  client::TlsOptions tls;
  std::string token_file;  // empty: HOOKLINE_TOKEN of the environment, if that is set
};

// The settings of the environment: HOOKLINE_SERVER, HOOKLINE_TLS, HOOKLINE_TLS_CA, HOOKLINE_TLS_CERT, HOOKLINE_TLS_KEY
// and HOOKLINE_TOKEN_FILE; else where hookline-server listens unless told otherwise.
ServerChoice DefaultServer();

// Declares --server, --token-file and those of TLS, which the program and every subcommand have, so that it may stand
// before or after their name.
void AddServerOption(CLI::App& command, Invocation& invocation);

// Makes a client of the server. INVALID_ARGUMENT names the option that is wrong, and refuses several servers.
absl::StatusOr<std::unique_ptr<client::Client>> Connect(const ServerChoice& server);

// Makes a client of the first server that answers, for what each of several answers alike. UNAVAILABLE where none does.
absl::StatusOr<std::unique_ptr<client::Client>> ConnectAny(const ServerChoice& server);

// kSpread: a DNS name of many addresses stands for all of them.
enum class Names { kKept, kSpread };

// Makes a client of each server, for one capture over all.
absl::StatusOr<std::vector<client::NamedServer>> ConnectAll(const ServerChoice& server, Names names);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_SERVER_OPTION_H_
