// Parses JSON that a stranger may have written: what a file holds ends no process, however it nests.
#ifndef HOOKLINE_SERVER_BASE_JSON_H_
#define HOOKLINE_SERVER_BASE_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// Returns the object that `text` is. FAILED_PRECONDITION, a phrase to follow the file's name: `text` is not a JSON
// object, or nests arrays and objects more than `max_depth` deep. The caller bounds the length of `text`.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, int max_depth);

// Returns the integer that `value` is, if it is one from `least` to `most`, however many digits the text has.
std::optional<int64_t> JsonInteger(const nlohmann::json& value, int64_t least, int64_t most);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_JSON_H_
