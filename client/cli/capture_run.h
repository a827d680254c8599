// Runs one capture to its end over as many calls as it takes.
#ifndef HOOKLINE_CLIENT_CLI_CAPTURE_RUN_H_
#define HOOKLINE_CLIENT_CLI_CAPTURE_RUN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/capture_result.h"
#include "client/cli/files/token_source.h"
#include "client/cli/interrupt.h"
#include "client/cli/terminal/progress.h"
#include "client/cpp/capture_call.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::cli {

// What happens with a capture's events. Errors end it.
struct CaptureHandlers {
  std::function<absl::Status(const v1::CaptureStarted&)> on_started;  // once, also with reconnects
  std::function<absl::Status(const client::Chunk&)> on_chunk;
};

// How to call the server, with the resume token of the last message, empty the first time.
using StartCall = std::function<std::unique_ptr<client::CaptureCall>(const std::string& resume_token)>;

// The most reconnects without a row between them; with the delays below that is about a minute of waiting.
inline constexpr int kMaxReconnects = 10;

// The wait before reconnect `attempt`, counted from 1: doubles from 250 ms to at most 8 s.
absl::Duration ReconnectDelay(int attempt);

// `tokens` is what the call streams in, null for a call without. A call that breaks with UNAVAILABLE after the server
// had granted the capture once is made again with its resume token; one that never got so far is not. CANCELLED after
// an interrupt. No row is given to the handlers twice.
absl::StatusOr<CaptureResult> RunCapture(const StartCall& start_call, TokenSource* tokens,
                                         const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_CAPTURE_RUN_H_
