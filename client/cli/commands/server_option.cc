#include "client/cli/commands/server_option.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cpp/endpoints.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

// A token has about fifty bytes; a much larger file is not a token file.
constexpr size_t kMaxTokenFileBytes = 4096;

std::string FromEnvironment(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr ? "" : value;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxTokenFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof() || file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token-file: ", path, " cannot be read, or is larger than ", kMaxTokenFileBytes, " bytes"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  text = std::string(absl::StripAsciiWhitespace(text));
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat("--token-file: ", path, " is empty"));
  return text;
}

absl::StatusOr<client::ClientOptions> OptionsOf(const ServerChoice& server) {
  client::ClientOptions options;
  options.tls = server.tls;
  options.token = FromEnvironment("HOOKLINE_TOKEN");
  if (!server.token_file.empty()) {
    ASSIGN_OR_RETURN(options.token, ReadToken(server.token_file));
  }
  return options;
}

absl::Status OfOption(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("--server: ", status.message()));
}

absl::StatusOr<client::Endpoints> EndpointsOf(const ServerChoice& server) {
  absl::StatusOr<client::Endpoints> endpoints = client::ReadEndpoints(server.address);
  if (!endpoints.ok()) return OfOption(endpoints.status());
  return endpoints;
}

}  // namespace

ServerChoice DefaultServer() {
  ServerChoice server;
  server.address = FromEnvironment("HOOKLINE_SERVER");
  if (server.address.empty()) server.address = "127.0.0.1:7471";
  const std::string tls = FromEnvironment("HOOKLINE_TLS");
  server.tls.enabled = !tls.empty() && tls != "0" && tls != "false";
  server.tls.ca_path = FromEnvironment("HOOKLINE_TLS_CA");
  server.tls.certificate_path = FromEnvironment("HOOKLINE_TLS_CERT");
  server.tls.key_path = FromEnvironment("HOOKLINE_TLS_KEY");
  server.token_file = FromEnvironment("HOOKLINE_TOKEN_FILE");
  return server;
}

void AddServerOption(CLI::App& command, Invocation& invocation) {
  ServerChoice& server = invocation.server;
  command
      .add_option(
          "--server", server.address,
          "The server (HOOKLINE_SERVER); grpcs://HOST:PORT implies --tls. Several servers that hold the same model are "
          "separated by commas, or are lines of a file, hookline://FILE: capture uses all of them, commands that ask "
          "about models or evaluate use the first that answers, and the other commands need a single server")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  const std::string group = "Security";
  command.add_flag("--tls", server.tls.enabled, "Use TLS (HOOKLINE_TLS)")->group(group);
  command
      .add_option(
          "--tls-ca", server.tls.ca_path,
          "PEM file of the authority that must have signed the server's certificate; implies --tls. Default: the "
          "authorities of this machine (HOOKLINE_TLS_CA)")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--tls-cert", server.tls.certificate_path,
                  "PEM file of the client's certificate; implies --tls (HOOKLINE_TLS_CERT)")
      ->type_name("FILE")
      ->group(group);
  command.add_option("--tls-key", server.tls.key_path, "PEM file of the client's private key (HOOKLINE_TLS_KEY)")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--token-file", server.token_file,
                  "File with the token to send (HOOKLINE_TOKEN_FILE); HOOKLINE_TOKEN can hold the token itself")
      ->type_name("FILE")
      ->group(group);
}

absl::StatusOr<std::unique_ptr<client::Client>> Connect(const ServerChoice& server) {
  ASSIGN_OR_RETURN(const client::Endpoints endpoints, EndpointsOf(server));
  if (endpoints.addresses.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--server: ", Escaped(server.address), " names ", endpoints.addresses.size(),
                     " servers; recordings, running captures and health belong to one server; give one"));
  }
  ASSIGN_OR_RETURN(const client::ClientOptions options, OptionsOf(server));
  return client::Client::Connect(endpoints.addresses[0], options);
}

absl::StatusOr<std::unique_ptr<client::Client>> ConnectAny(const ServerChoice& server) {
  ASSIGN_OR_RETURN(const client::Endpoints endpoints, EndpointsOf(server));
  ASSIGN_OR_RETURN(const client::ClientOptions options, OptionsOf(server));
  if (endpoints.addresses.size() == 1) return client::Client::Connect(endpoints.addresses[0], options);
  client::ClientOptions asking = options;
  asking.rpc_timeout = client::kAnswerTime;
  absl::Status first;
  for (const std::string& address : endpoints.addresses) {
    ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, client::Client::Connect(address, asking));
    const absl::Status asked = client->ListModels().status();
    if (!client::IsGone(asked)) return client::Client::Connect(address, options);
    first.Update(asked);
  }
  return ExplainUnavailable(first, server.address);
}

absl::StatusOr<std::vector<client::NamedServer>> ConnectAll(const ServerChoice& server, Names names) {
  ASSIGN_OR_RETURN(client::Endpoints endpoints, EndpointsOf(server));
  if (names == Names::kSpread) {
    const bool is_secure = server.tls.is_on() || std::any_of(endpoints.addresses.begin(), endpoints.addresses.end(),
                                                             [](const std::string& address) {
                                                               return absl::StartsWith(address, "grpcs://");
                                                             });
    RETURN_IF_ERROR(OfOption(client::SpreadNames(is_secure, client::ResolveByDns, &endpoints)));
  }
  ASSIGN_OR_RETURN(client::ClientOptions options, OptionsOf(server));
  options.shared_memory_bytes = 0;  // blocks that wait for their turn would hold too much of it
  options.rpc_timeout = client::kAnswerTime;
  std::vector<client::NamedServer> servers;
  for (const std::string& address : endpoints.addresses) {
    ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, client::Client::Connect(address, options));
    servers.push_back({address, std::move(client)});
  }
  return servers;
}

}  // namespace hookline::cli
