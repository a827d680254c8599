// Converts requests and enums between the proto and the engine's plain C++.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_REQUEST_CONVERSION_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_REQUEST_CONVERSION_H_

#include "absl/status/statusor.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/base/dtype.h"
#include "server/capture/request.h"

namespace hookline {

v1::Dtype ToProto(Dtype dtype);
v1::SpecialToken ToProto(const SpecialToken& token);

DatasetSource FromProto(const v1::DatasetSource& source);

// INVALID_ARGUMENT, naming `text.long_texts`, for a number that has no name.
absl::StatusOr<LongTexts> FromProto(v1::LongTexts long_texts);

// Converts a request, with the proto's defaults for fields that are unset. request_parser.h reads `tokens` and `text`;
// here they count as no source. Checks only what plain C++ cannot express: INVALID_ARGUMENT, naming the field, for an
// enum's number that has no name. The engine checks everything else.
absl::StatusOr<CaptureRequest> FromProto(const v1::CaptureRequest& request);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_REQUEST_CONVERSION_H_
