// A chart of hook points' row norms for the terminal, and the table above it.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_NORM_CHART_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_NORM_CHART_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/capture_result.h"

namespace hookline::cli {

// Returns the report of a capture with statistics_only: a table with a row for each hook point, and NormChart. `paths`
// is empty.
std::string StatisticsTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);

// Draws a line for each hook point on one logarithmic axis: a bar from the 1 % to the 99 % quantile of its row norms,
// the median as `|` and, unless it falls into the same column, the mean as `o`. Returns "" if no norm is above 0.
std::string NormChart(const v1::CaptureSummary& summary);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_NORM_CHART_H_
