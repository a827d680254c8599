// Runs one capture to its end over as many calls as it takes.
#ifndef HOOKLINE_CLIENT_CLI_CAPTURE_RUN_H_
#define HOOKLINE_CLIENT_CLI_CAPTURE_RUN_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/capture_result.h"
#include "client/cli/files/token_source.h"
#include "client/cli/interrupt.h"
#include "client/cli/terminal/progress.h"
#include "client/cpp/capture_response.h"
#include "client/cpp/resumable_capture.h"
#include "client/cpp/server_fleet.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::cli {

// The functions that receive a capture's events. An error from one of them ends the capture.
struct CaptureHandlers {
  std::function<absl::Status(const v1::CaptureStarted&)> on_started;  // called once, even if the capture reconnects
  std::function<absl::Status(const client::Chunk&)> on_chunk;
};

// `tokens` is the source that the call streams to the server, null for a call that streams none. A call that fails with
// UNAVAILABLE after the server granted the capture is repeated, by the policy of client/cpp/resumable_capture.h; the
// handlers receive no row twice. Returns CANCELLED after an interrupt.
absl::StatusOr<CaptureResult> RunCapture(const client::ResumableCapture::StartCall& start_call, TokenSource* tokens,
                                         const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt);

// Does the same over several servers (client/cpp/shared_capture.h). `tokens` is null if `request` has a dataset.
absl::StatusOr<CaptureResult> RunSharedCapture(std::vector<client::NamedServer> servers,
                                               const v1::CaptureRequest& request, TokenSource* tokens,
                                               const CaptureHandlers& handlers, Progress& progress,
                                               Interrupt& interrupt);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_CAPTURE_RUN_H_
