#include "client/cli/exit_code.h"

#include "absl/strings/str_cat.h"
#include "client/cpp/proxy.h"
#include "server/base/escape.h"

namespace hookline::cli {

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitError;
  }
}

std::string ErrorLine(const absl::Status& status) {
  std::string line = Escaped(status.message());
  if (line.empty()) line = absl::StatusCodeToString(status.code());
  return line;
}

absl::Status ExplainUnavailable(const absl::Status& status, const std::string& address) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  return absl::UnavailableError(absl::StrCat(
      "no answer from ", address, " (", client::NameProxy(status, client::ProxyOnTheWay(address)).message(),
      "); start hookline-server there, or name another server with --server or HOOKLINE_SERVER"));
}

}  // namespace hookline::cli
