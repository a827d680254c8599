// Makes a recording's manifest from the capture's plan, and compares the two.
#ifndef HOOKLINE_SERVER_RECORDER_RECORDING_REQUEST_H_
#define HOOKLINE_SERVER_RECORDER_RECORDING_REQUEST_H_

#include <string>

#include "absl/status/status.h"
#include "server/capture/capture.h"
#include "server/capture/plan.h"
#include "server/recording/manifest.h"

namespace hookline {

// Returns the manifest of a new recording `name` of the planned capture.
Manifest ManifestOf(const std::string& name, const std::string& request_digest, const CapturePlan& plan);

// Returns FAILED_PRECONDITION, naming what differs, unless the capture has the recording's model, shape and budgets.
absl::Status CheckContinues(const Manifest& manifest, const CaptureStarted& started);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_RECORDING_REQUEST_H_
