// Helpers around absl::Status, which crosses every boundary inside the server.
#ifndef HOOKLINE_SERVER_BASE_STATUS_H_
#define HOOKLINE_SERVER_BASE_STATUS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// Returns INVALID_ARGUMENT about one field of a request: the message reads `FIELD: MESSAGE`, and the field's path is
// attached too, so that clients need not parse the message. `field` is the path in the proto,
// e.g. `tokens.sequences[3].ids[17]`.
absl::Status InvalidField(absl::string_view field, absl::string_view message);

// Returns `status` with the path of the field that it is about. An OK status is returned as it is, and so is one with
// an empty path.
absl::Status WithField(absl::Status status, absl::string_view field);

// Returns the path given to InvalidField or WithField, or "" if `status` carries none.
std::string FieldOf(const absl::Status& status);

}  // namespace hookline

#define HOOKLINE_STATUS_CONCAT_INNER(a, b) a##b
#define HOOKLINE_STATUS_CONCAT(a, b) HOOKLINE_STATUS_CONCAT_INNER(a, b)

// Returns the status of `expression` from the enclosing function unless it is OK.
#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// Declares or assigns `target` from a StatusOr, or returns its status from the enclosing function.
#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_INNER(HOOKLINE_STATUS_CONCAT(status_or_, __LINE__), target, expression)
#define ASSIGN_OR_RETURN_INNER(status_or, target, expression) \
  auto status_or = (expression);                              \
  if (!status_or.ok()) return std::move(status_or).status();  \
  target = *std::move(status_or)

#endif  // HOOKLINE_SERVER_BASE_STATUS_H_
