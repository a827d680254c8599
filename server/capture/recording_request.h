// What a recording says of the capture that it was made from.
#ifndef HOOKLINE_SERVER_CAPTURE_RECORDING_REQUEST_H_
#define HOOKLINE_SERVER_CAPTURE_RECORDING_REQUEST_H_

#include <string>

#include "absl/status/status.h"
#include "server/capture/capture.h"
#include "server/capture/request.h"
#include "server/recording/manifest.h"

namespace hookline {

// What Catalog::Create asks for.
Manifest ManifestOf(const std::string& name, const std::string& request_digest, const CaptureRequest& request,
                    const CaptureStarted& started);

// FAILED_PRECONDITION, naming what differs, unless the capture brings rows of the same model, shape and budgets as the
// recording has.
absl::Status CheckContinues(const Manifest& manifest, const CaptureStarted& started);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_RECORDING_REQUEST_H_
