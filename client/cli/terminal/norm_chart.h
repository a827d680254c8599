// A drawing of hook points' norms for the terminal, and the table beside it.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_NORM_CHART_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_NORM_CHART_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/capture_result.h"

namespace hookline::cli {

// The report of a capture with statistics_only: a table with a row for each hook point, and NormChart. `paths` is
// empty.
std::string StatisticsTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);

// One line for each hook point, all on one logarithmic axis: from the 1 % to the 99 % quantile of its rows' norms with
// the median as `|` and, where it is not the same column, the mean as `o`.
std::string NormChart(const v1::CaptureSummary& summary);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_NORM_CHART_H_
