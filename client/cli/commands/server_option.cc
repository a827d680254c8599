#include <cstdlib>
#include <string>

#include "client/cli/commands/commands.h"

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

}  // namespace hookline::cli
