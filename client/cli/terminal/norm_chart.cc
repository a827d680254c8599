#include "client/cli/terminal/norm_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "server/base/escape.h"

namespace hookline::cli {
namespace {

// Leaves room for the longest names in a terminal of 100 columns.
constexpr int kColumns = 56;

// A logarithmic axis of kColumns columns, from `low` to `high`, both above 0.
struct Axis {
  double low = std::numeric_limits<double>::infinity();
  double high = 0;

  void Include(double norm) {
    if (!(norm > 0) || !std::isfinite(norm)) return;
    low = std::min(low, norm);
    high = std::max(high, norm);
  }
  bool empty() const { return high == 0; }
  int ColumnOf(double norm) const {
    if (!(norm > low)) return 0;
    if (!(norm < high)) return kColumns - 1;
    return static_cast<int>(std::lround((kColumns - 1) * std::log(norm / low) / std::log(high / low)));
  }
};

std::string Bar(const v1::HookPointSummary& summary, const Axis& axis) {
  std::string bar(kColumns, ' ');
  const int begin = axis.ColumnOf(summary.row_norm_p1()), end = axis.ColumnOf(summary.row_norm_p99());
  std::fill(bar.begin() + begin, bar.begin() + std::max(begin, end) + 1, '-');
  if (std::isfinite(summary.mean_row_norm())) bar[axis.ColumnOf(summary.mean_row_norm())] = 'o';
  bar[axis.ColumnOf(summary.row_norm_p50())] = '|';
  return bar;
}

}  // namespace

std::string NormChart(const v1::CaptureSummary& summary) {
  Axis axis;
  size_t name_width = 0;
  for (const v1::HookPointSummary& point : summary.hook_points()) {
    for (double norm : {point.row_norm_p1(), point.row_norm_p99(), point.mean_row_norm()}) axis.Include(norm);
    name_width = std::max(name_width, Escaped(point.hook_point()).size());
  }
  if (axis.empty()) return "";
  const std::string low = absl::StrFormat("%.3g", axis.low), high = absl::StrFormat("%.3g", axis.high);
  const int gap = std::max(1, kColumns - static_cast<int>(low.size() + high.size()));
  std::string text = absl::StrCat("Row norms, 1 % to 99 % quantile, on a logarithmic axis: | median, o mean\n",
                                  std::string(name_width + 2, ' '), low, std::string(gap, ' '), high, "\n");
  for (const v1::HookPointSummary& point : summary.hook_points()) {
    const std::string name = Escaped(point.hook_point());
    std::string line = absl::StrCat(name, std::string(name_width + 2 - name.size(), ' '), Bar(point, axis));
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string StatisticsTable(const CaptureResult& result, absl::Duration elapsed,
                            const std::vector<std::string>& /*paths*/) {
  std::vector<std::vector<std::string>> rows = {
      {"hook point", "rows", "mean norm", "1 %", "50 %", "99 %", "> 10 medians", "rms", "NaN", "infinite"}};
  const auto number = [](double value) { return absl::StrFormat("%.4g", value); };
  for (const v1::HookPointSummary& summary : result.summary.hook_points()) {
    rows.push_back({summary.hook_point(), WithCommas(summary.rows()), number(summary.mean_row_norm()),
                    number(summary.row_norm_p1()), number(summary.row_norm_p50()), number(summary.row_norm_p99()),
                    absl::StrFormat("%.3g %%", 100 * summary.outlier_row_share()), number(summary.rms()),
                    WithCommas(summary.nan_count()), WithCommas(summary.infinity_count())});
  }
  return absl::StrCat(Table(rows), "\n", NormChart(result.summary), "\n", WithCommas(result.summary.tokens()),
                      " tokens in ", WithCommas(result.summary.batches()), " batches, in ",
                      absl::StrFormat("%.2f", std::max(absl::ToDoubleSeconds(elapsed), 1e-3)),
                      " s; ended by: ", StopReasonName(result.summary.stop_reason()), ". Model ",
                      Escaped(result.started.model()), ".\n");
}

}  // namespace hookline::cli
