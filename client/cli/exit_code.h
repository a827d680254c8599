// How the program ends: its exit code, for scripts, and what it says of an error.
#ifndef HOOKLINE_CLIENT_CLI_EXIT_CODE_H_
#define HOOKLINE_CLIENT_CLI_EXIT_CODE_H_

#include <string>

#include "absl/status/status.h"

namespace hookline::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;        // the server or the disk failed
inline constexpr int kExitUsage = 2;        // what was asked for is wrong
inline constexpr int kExitUnavailable = 3;  // no server, or it went away for good
inline constexpr int kExitInterrupted = 130;

// The exit code that tells a status. INVALID_ARGUMENT is a usage error whoever found it, this program or the server.
int ExitCodeOf(const absl::Status& status);

// Returns an error as one line, without control characters.
std::string ErrorLine(const absl::Status& status);

// `status`, where it says that there is no server, with what to do about it.
absl::Status ExplainUnavailable(const absl::Status& status, const std::string& address);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_EXIT_CODE_H_
