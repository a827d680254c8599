// The result of a capture.
#ifndef HOOKLINE_CLIENT_CLI_CAPTURE_RESULT_H_
#define HOOKLINE_CLIENT_CLI_CAPTURE_RESULT_H_

#include <cstdint>

#include "hookline/v1/capture_service.pb.h"

namespace hookline::cli {

// Covers all calls that the capture took.
struct CaptureResult {
  v1::CaptureStarted started;
  v1::CaptureSummary summary;  // of ResumableCapture or SharedCapture
  int64_t bytes = 0;
  int reconnects = 0;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_CAPTURE_RESULT_H_
