// The part that the commands `read` and `export` share: both write rows of a recording into files.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_RECORDING_READ_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_RECORDING_READ_H_

#include <cstdint>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/cli/commands/capture_request.h"
#include "client/cli/transfer.h"
#include "client/cpp/client.h"

namespace hookline::cli {

struct RecordingReadFlags : TransferFlags, HookPointFlags {
  std::string name;
  int64_t first_row = 0;
  int64_t row_count = 0;
  std::optional<uint64_t> shuffle_seed;
};

// Declares the flags that both commands have. `flags` must outlive the parsing.
void AddRecordingReadOptions(CLI::App& command, RecordingReadFlags& flags);

// Makes the transfer that reads the rows; the caller sets what its command adds and runs the transfer. INVALID_ARGUMENT
// names the flag. `client` must outlive the transfer.
absl::StatusOr<Transfer> MakeRecordingRead(const RecordingReadFlags& flags, client::Client& client);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_RECORDING_READ_H_
