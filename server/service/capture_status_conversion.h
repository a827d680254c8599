// Converts a capture's status to the proto.
#ifndef HOOKLINE_SERVER_SERVICE_CAPTURE_STATUS_CONVERSION_H_
#define HOOKLINE_SERVER_SERVICE_CAPTURE_STATUS_CONVERSION_H_

#include "hookline/v1/capture_service.pb.h"
#include "server/capture/capture_status.h"

namespace hookline {

v1::CaptureStatus ToProto(const CaptureStatus& status);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_CAPTURE_STATUS_CONVERSION_H_
