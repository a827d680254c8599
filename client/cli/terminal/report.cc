#include "client/cli/terminal/report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal/text_format.h"
#include "nlohmann/json.hpp"
#include "server/base/escape.h"

namespace hookline::cli {
namespace {

// Returns a line with the rows, bytes and time of a capture, why it ended, and its model.
std::string Totals(const CaptureResult& result, absl::Duration elapsed) {
  int64_t rows = 0;
  for (const v1::HookPointSummary& summary : result.summary.hook_points()) rows += summary.rows();
  return absl::StrCat(WithCommas(rows), " rows of ", DtypeName(result.started.dtype()), ", ",
                      ShortNumber(static_cast<double>(result.bytes)), "B, in ",
                      absl::StrFormat("%.2f", std::max(absl::ToDoubleSeconds(elapsed), 1e-3)),
                      " s; ended by: ", StopReasonName(result.summary.stop_reason()),
                      result.started.model().empty() ? "" : absl::StrCat(". Model ", Escaped(result.started.model())));
}

std::string Lines(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) absl::StrAppend(&text, Escaped(line), "\n");
  return text;
}

}  // namespace

std::string Table(const std::vector<std::vector<std::string>>& cells) {
  // The cells hold names from the server, which can contain control characters.
  std::vector<std::vector<std::string>> rows = cells;
  for (auto& row : rows) {
    for (std::string& cell : row) cell = Escaped(cell);
  }
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      if (i == 0) {
        absl::StrAppend(&text, row[i], row.size() > 1 ? padding : "");
      } else {
        absl::StrAppend(&text, "  ", padding, row[i]);
      }
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

std::string Count(int64_t count, absl::string_view thing) {
  return absl::StrCat(WithCommas(count), " ", thing, count == 1 ? "" : "s");
}

std::string ReadTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths) {
  std::vector<std::vector<std::string>> rows = {{"hook point", "rows", "width"}};
  for (int i = 0; i < result.summary.hook_points_size(); ++i) {
    const v1::HookPointSummary& summary = result.summary.hook_points(i);
    rows.push_back(
        {summary.hook_point(), WithCommas(summary.rows()), absl::StrCat(result.started.hook_points(i).width())});
  }
  return absl::StrCat(Table(rows), Totals(result, elapsed), ".\n", Lines(paths));
}

std::string CaptureTable(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths) {
  std::vector<std::vector<std::string>> rows = {
      {"hook point", "rows", "width", "mean row norm", "mean", "rms", "NaN", "infinite"}};
  bool partial = false, beyond = false;
  for (int i = 0; i < result.summary.hook_points_size(); ++i) {
    const v1::HookPointSummary& summary = result.summary.hook_points(i);
    rows.push_back({summary.hook_point(), WithCommas(summary.rows()),
                    absl::StrCat(result.started.hook_points(i).width()),
                    absl::StrFormat("%.6g", summary.mean_row_norm()), absl::StrFormat("%.6g", summary.mean()),
                    absl::StrFormat("%.6g", summary.rms()), WithCommas(summary.nan_count()),
                    WithCommas(summary.infinity_count())});
    partial |= summary.statistics_rows() < summary.rows();
    beyond |= summary.statistics_rows() > summary.rows();
  }
  std::string text = Table(rows);
  for (const v1::HookPointSummary& summary : result.summary.hook_points()) {
    if (summary.conversion_error() == 0) continue;
    absl::StrAppend(&text, Escaped(summary.hook_point()), ": ", DtypeName(result.started.dtype()), " is off by ",
                    absl::StrFormat("%.2g %%", 100 * summary.conversion_error()), " (relative RMS error)\n");
  }
  if (partial) absl::StrAppend(&text, "The statistics leave out rows from before a reconnect.\n");
  if (beyond) absl::StrAppend(&text, "The statistics include rows that servers computed beyond the budget.\n");
  absl::StrAppend(&text, Totals(result, elapsed), ", ", WithCommas(result.summary.tokens()), " tokens in ",
                  WithCommas(result.summary.batches()), " batches.\n", Lines(paths));
  return text;
}

std::string CaptureJson(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths) {
  nlohmann::ordered_json hook_points = nlohmann::ordered_json::array();
  for (int i = 0; i < result.summary.hook_points_size(); ++i) {
    const v1::HookPointSummary& summary = result.summary.hook_points(i);
    nlohmann::ordered_json entry = {{"hook_point", summary.hook_point()},
                                    {"rows", summary.rows()},
                                    {"width", result.started.hook_points(i).width()},
                                    {"max_activations", result.started.hook_points(i).max_activations()},
                                    {"clipped", result.started.hook_points(i).clipped()},
                                    {"statistics_rows", summary.statistics_rows()},
                                    {"mean_row_norm", summary.mean_row_norm()},
                                    {"mean", summary.mean()},
                                    {"rms", summary.rms()},
                                    {"nan_count", summary.nan_count()},
                                    {"infinity_count", summary.infinity_count()},
                                    {"overflow_count", summary.overflow_count()},
                                    {"truncated_rows", summary.truncated_rows()},
                                    {"conversion_error", summary.conversion_error()}};
    if (summary.mean_vector_size() > 0) {
      entry["row_norm_p1"] = summary.row_norm_p1();
      entry["row_norm_p50"] = summary.row_norm_p50();
      entry["row_norm_p99"] = summary.row_norm_p99();
      entry["outlier_row_share"] = summary.outlier_row_share();
      entry["mean_vector"] = std::vector<float>(summary.mean_vector().begin(), summary.mean_vector().end());
    }
    if (!paths.empty()) entry["path"] = paths[i];
    hook_points.push_back(std::move(entry));
  }
  const v1::CaptureTiming& timing = result.summary.timing();
  const nlohmann::ordered_json json = {{"model", result.started.model()},
                                       {"fingerprint", result.started.fingerprint()},
                                       {"dtype", DtypeName(result.started.dtype())},
                                       {"top_k", result.started.top_k()},
                                       {"stop_reason", StopReasonName(result.summary.stop_reason())},
                                       {"sequences", result.summary.sequences()},
                                       {"tokens", result.summary.tokens()},
                                       {"batches", result.summary.batches()},
                                       {"bytes", result.bytes},
                                       {"seconds", absl::ToDoubleSeconds(elapsed)},
                                       {"reconnects", result.reconnects},
                                       {"server_seconds",
                                        {{"total", timing.total_seconds()},
                                         {"queue", timing.queue_seconds()},
                                         {"forward", timing.forward_seconds()},
                                         {"copy", timing.copy_seconds()},
                                         {"wire", timing.wire_seconds()}}},
                                       {"hook_points", std::move(hook_points)}};
  return json.dump(2, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace hookline::cli
