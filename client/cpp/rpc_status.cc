#include "client/cpp/rpc_status.h"

#include <algorithm>
#include <utility>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/base/escape.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// No client should wait longer than this without reporting the error.
constexpr absl::Duration kMaxRetryDelay = absl::Hours(1);

// Returns the first message of this type among the details of an encoded google.rpc.Status.
template <typename Detail>
std::optional<Detail> DetailOf(absl::string_view details) {
  google::rpc::Status status;
  if (!status.ParseFromArray(details.data(), static_cast<int>(details.size()))) return std::nullopt;
  Detail detail;
  for (const google::protobuf::Any& any : status.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

}  // namespace

std::string BadRequestField(absl::string_view details) {
  const auto bad_request = DetailOf<google::rpc::BadRequest>(details);
  if (!bad_request.has_value() || bad_request->field_violations().empty()) return "";
  return bad_request->field_violations(0).field();
}

std::optional<absl::Duration> RetryDelay(absl::string_view details) {
  const auto retry = DetailOf<google::rpc::RetryInfo>(details);
  if (!retry.has_value()) return std::nullopt;
  const absl::Duration delay =
      absl::Seconds(retry->retry_delay().seconds()) + absl::Nanoseconds(retry->retry_delay().nanos());
  return std::clamp(delay, absl::ZeroDuration(), kMaxRetryDelay);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  // The bytes come from a server, so they are escaped here, once for all code that shows the status.
  absl::Status converted =
      WithField(absl::Status(static_cast<absl::StatusCode>(status.error_code()), Escaped(status.error_message())),
                Escaped(BadRequestField(status.error_details())));
  const std::optional<absl::Duration> delay = RetryDelay(status.error_details());
  return delay.has_value() ? WithRetryAfter(std::move(converted), *delay) : converted;
}

}  // namespace hookline::client
