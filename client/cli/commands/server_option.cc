#include "client/cli/commands/server_option.h"

#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"

namespace hookline::cli {
namespace {

// A token has some fifty bytes; what is much larger is another file.
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
      .add_option("--server", server.address,
                  "The server to ask, also by the environment's HOOKLINE_SERVER; grpcs://HOST:PORT means --tls")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  const std::string group = "Security";
  command.add_flag("--tls", server.tls.enabled, "Speak TLS (HOOKLINE_TLS)")->group(group);
  command
      .add_option(
          "--tls-ca", server.tls.ca_path,
          "PEM file of the authority that must have signed the server's certificate; means --tls. Default: those "
          "of this machine (HOOKLINE_TLS_CA)")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--tls-cert", server.tls.certificate_path,
                  "PEM file of a certificate to show to the server; means --tls (HOOKLINE_TLS_CERT)")
      ->type_name("FILE")
      ->group(group);
  command.add_option("--tls-key", server.tls.key_path, "PEM file of its private key (HOOKLINE_TLS_KEY)")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--token-file", server.token_file,
                  "File of the token to send (HOOKLINE_TOKEN_FILE); or the token itself in HOOKLINE_TOKEN")
      ->type_name("FILE")
      ->group(group);
}

absl::StatusOr<std::unique_ptr<client::Client>> Connect(const ServerChoice& server) {
  client::ClientOptions options;
  options.tls = server.tls;
  options.token = FromEnvironment("HOOKLINE_TOKEN");
  if (!server.token_file.empty()) {
    absl::StatusOr<std::string> token = ReadToken(server.token_file);
    if (!token.ok()) return token.status();
    options.token = *std::move(token);
  }
  return client::Client::Connect(server.address, options);
}

}  // namespace hookline::cli
