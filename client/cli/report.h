// What came of a capture, for people and for scripts.
#ifndef HOOKLINE_CLIENT_CLI_REPORT_H_
#define HOOKLINE_CLIENT_CLI_REPORT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/capture_run.h"

namespace hookline::cli {

// Columns padded to their widest entry, the first aligned left and the others right; `rows[0]` is the heading.
std::string Table(const std::vector<std::vector<std::string>>& rows);

// `paths` has the file of each hook point, or is empty.
std::string CaptureTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);
std::string CaptureJson(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_REPORT_H_
