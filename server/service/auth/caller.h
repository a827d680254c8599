// Identifies the client that calls a method and checks that it may, which each handler does before anything else.
//
//   CallRecord record;
//   const absl::StatusOr<AuthClient> client =
//       caller_.Authorize(*context, "/hookline.v1.EvaluationService/Score", &record);
//
// gRPC could do this before any handler runs, by a metadata processor. But if a port has one, gRPC 1.51 encodes every
// header for it, and aborts the process at one of them (`grpclb_client_stats`), which any client can send.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_CALLER_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_CALLER_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grpcpp/server_context.h"
#include "server/service/auth/authenticator.h"
#include "server/service/auth/connection_origins.h"
#include "server/service/call_record.h"

namespace hookline {

enum class Transport { kClear, kTls };

// Checks the calls on the connections of one origin. Thread-safe.
class CallerCheck {
 public:
  // `authenticator` and `metrics` must outlive this; `metrics` may be null.
  CallerCheck(const Authenticator* authenticator, CallMetrics* metrics, Origin origin, Transport transport)
      : authenticator_(authenticator), metrics_(metrics), origin_(origin), transport_(transport) {}

  // Returns the client that calls `method` (/package.Service/Method, a string that lives for ever). UNAUTHENTICATED or
  // PERMISSION_DENIED if it may not; INTERNAL for a method without a role. In either case `record` begins, and must be
  // ended when the call ends.
  absl::StatusOr<AuthClient> Authorize(const grpc::CallbackServerContext& context, absl::string_view method,
                                       CallRecord* record) const;

  // Returns the user at the other end; none if the kernel does not say.
  std::optional<uint32_t> uid() const { return origin_.uid; }

 private:
  const Authenticator* authenticator_;
  CallMetrics* metrics_;
  Origin origin_;
  Transport transport_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_CALLER_H_
