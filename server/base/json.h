// Parses JSON from untrusted files: no input, however deeply it nests, can end the process.
#ifndef HOOKLINE_SERVER_BASE_JSON_H_
#define HOOKLINE_SERVER_BASE_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// Parses `text` as a JSON object. FAILED_PRECONDITION, with a phrase to follow the file's name: `text` is not an
// object, or nests arrays and objects more than `max_depth` deep. The caller bounds the length of `text`.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, int max_depth);

// Returns `value` if it is an integer from `least` to `most`; its text may have any number of digits.
std::optional<int64_t> JsonInteger(const nlohmann::json& value, int64_t least, int64_t most);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_JSON_H_
