#include "client/cli/commands/notes.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/capture_request.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "server/base/escape.h"

namespace hookline::cli {
namespace {

// Returns the budget that was requested; none if none was.
std::optional<int64_t> AskedRows(const v1::CaptureRequest& request, const std::string& hook_point) {
  const auto& own = request.max_activations_by_hook_point();
  const auto found = own.find(hook_point);
  if (found != own.end()) return found->second;
  if (request.has_max_activations()) return request.max_activations();
  return std::nullopt;
}

std::string AtCap(const std::string& hook_point, int64_t rows) {
  return absl::StrCat(Escaped(hook_point), " ended at the server's cap of ", WithCommas(rows),
                      " rows (--max-rows), not ");
}

}  // namespace

std::vector<std::string> NotesOfGrant(const v1::CaptureStarted& started) {
  std::vector<std::string> notes;
  for (const v1::HookPointGrant& grant : started.hook_points()) {
    if (!grant.clipped()) continue;
    notes.push_back(absl::StrCat("the server grants ", WithCommas(grant.max_activations()), " rows of ",
                                 Escaped(grant.hook_point()), ", its cap"));
  }
  return notes;
}

std::vector<std::string> NotesOfEnd(const v1::CaptureRequest& request, const TokenSource* tokens,
                                    const CaptureResult& result) {
  std::vector<std::string> notes;
  for (int i = 0; i < result.started.hook_points_size(); ++i) {
    const v1::HookPointGrant& grant = result.started.hook_points(i);
    const v1::HookPointSummary& summary = result.summary.hook_points(i);
    if (summary.rows() == grant.max_activations() && !AskedRows(request, grant.hook_point()).has_value()) {
      notes.push_back(absl::StrCat(AtCap(grant.hook_point(), summary.rows()), "at the end of its source"));
    }
    if (summary.overflow_count() > 0) {
      notes.push_back(absl::StrCat(grant.hook_point(), ": ", Count(summary.overflow_count(), "value"),
                                   " became infinite, because float16 ends at 65504; use bfloat16 or float32"));
    }
  }
  if (std::optional<std::string> note = NoteOfFirstTokens(request, tokens)) notes.push_back(*std::move(note));
  return notes;
}

std::vector<std::string> NotesOfRecording(const v1::CaptureRequest& request, const v1::Recording& recording) {
  std::vector<std::string> notes;
  for (const v1::RecordedHookPoint& point : recording.hook_points()) {
    const std::optional<int64_t> asked = AskedRows(request, point.hook_point());
    if (point.rows() < point.max_activations() || (asked.has_value() && *asked <= point.rows())) continue;
    notes.push_back(absl::StrCat(AtCap(point.hook_point(), point.rows()),
                                 asked.has_value() ? absl::StrCat("at the ", WithCommas(*asked), " rows requested")
                                                   : "at the end of its source"));
  }
  return notes;
}

}  // namespace hookline::cli
