// Reads capture requests as gRPC received them. Protobuf parses them, except for token sequences and texts, which are
// read directly into the engine's types: as protobuf messages a hostile request would grow to thirty times its size
// in memory.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_REQUEST_PARSER_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_REQUEST_PARSER_H_

#include <optional>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/capture/limits.h"
#include "server/capture/request.h"
#include "server/recording/merge_plan.h"

namespace hookline {

// All return INVALID_ARGUMENT for bytes that are not such a message, for two sources in one request, and as FromProto
// does (request_conversion.h); RESOURCE_EXHAUSTED, with both numbers, for a request that takes more than 4 MiB besides
// its tokens and texts, and for more tokens, sequences or texts than `limits` allows. What is beyond the limits is
// counted, not kept.
//
// A batch with an empty sequence, which the engine refuses by its number, is read only up to there, so that a message
// of nothing but empty sequences takes no more memory than it came in.

absl::StatusOr<CaptureRequest> ParseCaptureRequest(grpc::ByteBuffer message, const TokenLimits& limits);

// A PersistRequest. Errors name the fields of its capture relative to `capture`.
struct PersistRequest {
  std::string name;
  CaptureRequest capture;
  std::optional<RecordingPart> part;  // its index and count
};
absl::StatusOr<PersistRequest> ParsePersistRequest(grpc::ByteBuffer message, const TokenLimits& limits);

// Parses an EstimateCaptureRequest and returns its `capture`.
absl::StatusOr<CaptureRequest> ParseEstimateCaptureRequest(grpc::ByteBuffer message, const TokenLimits& limits);

// Parses a CaptureStreamRequest, which holds one of the three; INVALID_ARGUMENT for none or several.
using CaptureStreamMessage = std::variant<CaptureRequest, TokenBatch, TextSource>;
absl::StatusOr<CaptureStreamMessage> ParseCaptureStreamRequest(grpc::ByteBuffer message, const TokenLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_REQUEST_PARSER_H_
