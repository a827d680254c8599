#include "server/model/families/config_json.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/json.h"
#include "server/base/status.h"
#include "server/model/load/checkpoint_file.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// Published files have a few kilobytes.
constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;
// Published files nest three or four levels.
constexpr int kMaxConfigDepth = 32;

// Returns `text` with quotes around NaN, Infinity and -Infinity outside strings.
std::string QuoteNotFinite(absl::string_view text) {
  std::string quoted;
  quoted.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    size_t length = 1;
    if (in_string) {
      if (text[i] == '"') in_string = false;
      if (text[i] == '\\') length = std::min<size_t>(2, text.size() - i);
    } else if (text[i] == '"') {
      in_string = true;
    } else {
      for (absl::string_view word : {"-Infinity", "Infinity", "NaN"}) {
        if (absl::StartsWith(text.substr(i), word)) length = word.size();
      }
    }
    const bool is_word = !in_string && length > 2;
    absl::StrAppend(&quoted, is_word ? "\"" : "", text.substr(i, length), is_word ? "\"" : "");
    i += length;
  }
  return quoted;
}

}  // namespace

absl::StatusOr<Json> ReadConfigJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadCheckpointText(path, kMaxConfigBytes));
  absl::StatusOr<Json> json = ParseJsonObject(QuoteNotFinite(text), kMaxConfigDepth);
  if (!json.ok()) return absl::FailedPreconditionError(absl::StrCat(path, ": ", json.status().message()));
  return json;
}

}  // namespace hookline
