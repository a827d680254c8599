// Converts grpc::Status to absl::Status.
#ifndef HOOKLINE_CLIENT_CPP_RPC_STATUS_H_
#define HOOKLINE_CLIENT_CPP_RPC_STATUS_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace hookline::client {

// Returns the code that the server sent, with its message escaped. If the details name a field, hookline::FieldOf
// returns its path.
absl::Status FromGrpc(const grpc::Status& status);

// Returns the first field that a google.rpc.BadRequest in `details` names; "" if there is none or `details` is
// malformed. `details` is what gRPC carries as `grpc-status-details-bin`: an encoded
// google.rpc.Status (proto/google/rpc).
std::string BadRequestField(absl::string_view details);

// Returns the time to wait that a google.rpc.RetryInfo in `details` names, if there is one.
std::optional<absl::Duration> RetryDelay(absl::string_view details);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_RPC_STATUS_H_
