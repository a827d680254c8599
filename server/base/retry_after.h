// Attaches to a status the time after which to try again.
#ifndef HOOKLINE_SERVER_BASE_RETRY_AFTER_H_
#define HOOKLINE_SERVER_BASE_RETRY_AFTER_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace hookline {

// Returns `status`, which is not OK, with the time after which the same request may succeed.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);

// Returns the time given to WithRetryAfter, if any.
std::optional<absl::Duration> RetryAfterOf(const absl::Status& status);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_RETRY_AFTER_H_
