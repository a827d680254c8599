#include "server/base/json.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

// The parser does not recurse, but destroying its result can. (Counting levels in the parser's callback would make
// parsing quadratic in the number of an array's elements.)
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

std::optional<int64_t> JsonInteger(const nlohmann::json& value, int64_t least, int64_t most) {
  constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > kMost) return std::nullopt;
  const auto number = value.get<int64_t>();
  if (number < least || number > most) return std::nullopt;
  return number;
}

}  // namespace hookline
