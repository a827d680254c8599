#include "server/service/status_mapping.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/base/escape.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// A field's path names positions, so it is short; one that is not comes from a name in the request.
constexpr size_t kMaxFieldBytes = 256;

// Returns at most `limit` bytes of `text`, cut between characters of UTF-8.
std::string CutTo(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), "...");
}

// Returns the google.rpc.Status with the field at fault and the time to wait; "" for a status that has neither.
std::string DetailsOf(const absl::Status& status, const std::string& message) {
  const std::string field = Escaped(FieldOf(status));
  const std::optional<absl::Duration> retry_after = RetryAfterOf(status);
  if (field.empty() && !retry_after.has_value()) return "";
  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(message);
  if (!field.empty()) {
    google::rpc::BadRequest bad_request;
    google::rpc::BadRequest::FieldViolation& violation = *bad_request.add_field_violations();
    violation.set_field(CutTo(field, kMaxFieldBytes));
    violation.set_description(message);
    details.add_details()->PackFrom(bad_request);
  }
  if (retry_after.has_value()) {
    google::rpc::RetryInfo retry;
    const int64_t nanoseconds = absl::ToInt64Nanoseconds(*retry_after);
    retry.mutable_retry_delay()->set_seconds(nanoseconds / 1'000'000'000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanoseconds % 1'000'000'000));
    details.add_details()->PackFrom(retry);
  }
  return details.SerializeAsString();
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // The codes are the same numbers; code() maps those that a later Abseil may add to UNKNOWN.
  const auto code = static_cast<grpc::StatusCode>(status.code());
  // Names from files and other clients are escaped, so that they can be shown; and Protobuf takes UTF-8 only.
  const std::string message = CutTo(Escaped(status.message()), kMaxStatusMessageBytes);
  return grpc::Status(code, message, DetailsOf(status, message));
}

}  // namespace hookline
