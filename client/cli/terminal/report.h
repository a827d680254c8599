// Reports the result of a capture, for people and for scripts.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_REPORT_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cli/capture_result.h"

namespace hookline::cli {

// Pads columns to their widest entry, the first aligned left and the others right. `rows[0]` is the heading.
std::string Table(const std::vector<std::vector<std::string>>& rows);

// Returns `1 shard`, `2 shards`.
std::string Count(int64_t count, absl::string_view thing);

// The next three functions report a result. `paths` has the file of each hook point, or is empty.

// Returns a table with statistics.
std::string CaptureTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);
// Returns the table of a read, whose summary has no statistics.
std::string ReadTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);
// Returns one JSON object with everything that is known.
std::string CaptureJson(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_REPORT_H_
