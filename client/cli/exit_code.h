// The program's exit codes, for scripts, and its error messages.
#ifndef HOOKLINE_CLIENT_CLI_EXIT_CODE_H_
#define HOOKLINE_CLIENT_CLI_EXIT_CODE_H_

#include <string>

#include "absl/status/status.h"

namespace hookline::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;        // the server or the disk failed
inline constexpr int kExitUsage = 2;        // the request is wrong
inline constexpr int kExitUnavailable = 3;  // no server answers, or it went away for good
inline constexpr int kExitInterrupted = 130;

// Returns the exit code for a status. INVALID_ARGUMENT is a usage error, whether this program or the server found it.
int ExitCodeOf(const absl::Status& status);

// Returns an error as one line, without control characters.
std::string ErrorLine(const absl::Status& status);

// If `status` means that no server answers, returns UNAVAILABLE with advice on what to do, else `status`.
absl::Status ExplainUnavailable(const absl::Status& status, const std::string& address);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_EXIT_CODE_H_
