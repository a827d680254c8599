// Converts recordings from their manifests to the proto, and requests to read them from the proto.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_RECORDING_CONVERSION_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_RECORDING_CONVERSION_H_

#include "absl/status/statusor.h"
#include "grpcpp/support/byte_buffer.h"
#include "hookline/v1/recording_service.pb.h"
#include "server/recorder/replay.h"
#include "server/recording/manifest.h"

namespace hookline {

// kFull includes a recording's hook points and shards.
enum class RecordingView { kBasic, kFull };

v1::Recording ToProto(const Manifest& manifest, RecordingView view);

// INVALID_ARGUMENT, naming the field, for an enum's number that has no name.
absl::StatusOr<ReplayRequest> FromProto(const v1::ReadRecordingRequest& request);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_RECORDING_CONVERSION_H_
