#include "server/base/json.h"

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

// The parser does not recurse, but destroying its result may. (The parser's own callback for this makes it quadratic in
// the number of an array's elements.)
bool NestsDeeper(absl::string_view text, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, int max_depth) {
  if (NestsDeeper(text, max_depth)) {
    return absl::FailedPreconditionError(absl::StrCat("nests too deeply: more than ", max_depth, " levels of JSON"));
  }
  nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::FailedPreconditionError("is not a JSON object");
  return json;
}

}  // namespace hookline
