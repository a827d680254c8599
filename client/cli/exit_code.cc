#include "client/cli/exit_code.h"

#include "absl/strings/ascii.h"

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
  std::string line(status.message());
  for (char& c : line) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  if (line.empty()) line = absl::StatusCodeToString(status.code());
  return line;
}

}  // namespace hookline::cli
