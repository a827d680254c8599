#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"

namespace hookline::cli {

void AddServerOption(CLI::App& command, std::string& address) {
  command.add_option("--server", address, "The server to ask")
      ->type_name("HOST:PORT")
      ->envname("HOOKLINE_SERVER")
      ->capture_default_str();
}

absl::Status ExplainUnavailable(const absl::Status& status, const std::string& address) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  return absl::UnavailableError(
      absl::StrCat("no answer from ", address, " (", status.message(),
                   "); start hookline-server there, or name it by --server or HOOKLINE_SERVER"));
}

}  // namespace hookline::cli
