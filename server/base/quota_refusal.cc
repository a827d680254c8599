#include "server/base/quota_refusal.h"

#include "absl/strings/cord.h"

namespace hookline {
namespace {

constexpr char kPayload[] = "hookline/quota";

}  // namespace

absl::Status QuotaRefusal(absl::string_view quota, absl::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kPayload, absl::Cord(quota));
  return status;
}

std::string RefusingQuota(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

}  // namespace hookline
