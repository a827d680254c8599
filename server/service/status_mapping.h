// absl::Status as gRPC's, with the field at fault in the details.
#ifndef HOOKLINE_SERVER_SERVICE_STATUS_MAPPING_H_
#define HOOKLINE_SERVER_SERVICE_STATUS_MAPPING_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace hookline {

// A longer message is cut to this, "..." included. Message and details travel as HTTP/2 headers, of which a client
// takes 8 KiB: as text, where every byte may be escaped as three, and twice in the details, in base64.
constexpr size_t kMaxStatusMessageBytes = 1024;

// The same code, and the message as Escaped gives it. Where FieldOf(status) names a field, a google.rpc.BadRequest in
// `grpc-status-details-bin` does too: an encoded google.rpc.Status (proto/google/rpc).
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_STATUS_MAPPING_H_
