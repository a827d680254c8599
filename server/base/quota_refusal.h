// Attaches the name of a client's quota to a status, so that refusals can be counted by quota.
#ifndef HOOKLINE_SERVER_BASE_QUOTA_REFUSAL_H_
#define HOOKLINE_SERVER_BASE_QUOTA_REFUSAL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline {

// Returns RESOURCE_EXHAUSTED with `message`, which names the quota and the use. `quota` is its name in the auth file.
absl::Status QuotaRefusal(absl::string_view quota, absl::string_view message);

// Returns the quota given to QuotaRefusal, or "" for any other status.
std::string RefusingQuota(const absl::Status& status);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_QUOTA_REFUSAL_H_
