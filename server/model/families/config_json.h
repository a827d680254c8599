// Reads the text of a config.json.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_JSON_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_JSON_H_

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace hookline {

// Returns the object in the file. Python writes NaN, Infinity and -Infinity, which JSON does not have. They become
// strings of that name, so that a needed field is refused by its value, and any other does no harm. Errors: those of
// ReadCheckpointText; FAILED_PRECONDITION for anything but a JSON object.
absl::StatusOr<nlohmann::json> ReadConfigJson(const std::string& path);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_JSON_H_
