// Converts absl::Status to gRPC's, with the field at fault in the details.
#ifndef HOOKLINE_SERVER_SERVICE_STATUS_MAPPING_H_
#define HOOKLINE_SERVER_SERVICE_STATUS_MAPPING_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace hookline {

// A longer message is cut to this length, "..." included. The message travels in HTTP/2 headers, of which a client
// takes 8 KiB: once as text, in which every byte may be escaped as three, and twice in the details, in base64.
constexpr size_t kMaxStatusMessageBytes = 1024;

// Returns the same code, with the message as Escaped gives it. If FieldOf(status) names a field, or
// RetryAfterOf(status) a time, `grpc-status-details-bin`, an encoded google.rpc.Status (proto/google/rpc), has it as a
// BadRequest or a RetryInfo.
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_STATUS_MAPPING_H_
