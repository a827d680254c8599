#include "client/cli/exit_code.h"

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

}  // namespace hookline::cli
