#include "client/cli/terminal/recording_text.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "server/base/escape.h"

namespace hookline::cli {

std::string StateName(v1::RecordingState state) {
  const std::string name = v1::RecordingState_Name(state);
  if (name.empty()) return absl::StrCat("state ", static_cast<int>(state));
  return absl::AsciiStrToLower(absl::StripPrefix(name, "RECORDING_STATE_"));
}

std::string RecordingText(const v1::Recording& recording) {
  std::string text = absl::StrCat(Escaped(recording.name()), ": ", StateName(recording.state()));
  if (!recording.error().empty()) absl::StrAppend(&text, " (", Escaped(recording.error()), ")");
  absl::StrAppend(&text, ", ", WithCommas(recording.rows()), " rows of ", DtypeName(recording.dtype()), ", ",
                  ShortNumber(static_cast<double>(recording.bytes())), "B in ", Count(recording.shard_count(), "shard"),
                  "\n");
  if (!recording.model().empty()) absl::StrAppend(&text, "model ", Escaped(recording.model()), "\n");
  if (!recording.fingerprint().empty()) absl::StrAppend(&text, "fingerprint ", Escaped(recording.fingerprint()), "\n");
  if (recording.has_dataset()) {
    absl::StrAppend(&text, "dataset ", Escaped(recording.dataset().name()), ", sequences of ",
                    WithCommas(recording.dataset().sequence_length()), "\n");
  } else if (recording.token_sequences() > 0) {
    absl::StrAppend(&text, Count(recording.token_sequences(), "sequence"), " from the request\n");
  }
  std::vector<std::vector<std::string>> rows = {{"hook point", "rows", "of", "width"}};
  for (const v1::RecordedHookPoint& point : recording.hook_points()) {
    rows.push_back(
        {point.hook_point(), WithCommas(point.rows()), WithCommas(point.max_activations()), WithCommas(point.width())});
  }
  return text + Table(rows);
}

}  // namespace hookline::cli
