// Writes a capture's events as CaptureResponses. A chunk's values are not copied on their way to the socket.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_CAPTURE_RESPONSE_ENCODER_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_CAPTURE_RESPONSE_ENCODER_H_

#include <cstdint>
#include <optional>

#include "grpcpp/support/byte_buffer.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/capture/capture.h"

namespace hookline {

// `shared_memory_bytes` is the size of the client's memory if that is used, otherwise 0.
grpc::ByteBuffer EncodeStarted(const CaptureStarted& started, int64_t shared_memory_bytes = 0);

// Returns the message of a chunk of the capture that `started` began. With kBytes the chunk's slabs become slices of
// the message, which holds them until gRPC has released the last slice; with kValues, and with the offset in the
// client's memory to which the values have been copied, it holds none. The message takes at most MessageHeaderBytes
// + rows * MessageRowBytes (server/capture/message_size.h).
grpc::ByteBuffer EncodeChunk(const CaptureStarted& started, Encoding encoding, const Chunk& chunk,
                             std::optional<int64_t> data_offset = std::nullopt);

// `started` gives the hook points their names.
v1::CaptureSummary SummaryToProto(const CaptureStarted& started, const CaptureEnded& ended);
grpc::ByteBuffer EncodeSummary(const CaptureStarted& started, const CaptureEnded& ended);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_CAPTURE_RESPONSE_ENCODER_H_
