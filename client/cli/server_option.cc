#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cpp/proxy.h"

namespace hookline::cli {

std::string DefaultServer() {
  const char* named = std::getenv("HOOKLINE_SERVER");
  return named != nullptr && *named != '\0' ? named : "127.0.0.1:7471";
}

void AddServerOption(CLI::App& command, Invocation& invocation) {
  command.add_option("--server", invocation.server, "The server to ask; also by the environment's HOOKLINE_SERVER")
      ->type_name("HOST:PORT")
      ->capture_default_str();
}

absl::Status ExplainUnavailable(const absl::Status& status, const std::string& address) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  return absl::UnavailableError(absl::StrCat(
      "no answer from ", address, " (", client::NameProxy(status, client::ProxyOnTheWay(address)).message(),
      "); start hookline-server there, or name it by --server or HOOKLINE_SERVER"));
}

}  // namespace hookline::cli
