// Checks that every installed header compiles, and that the library behind them links and runs.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "client/cpp/batched_capture.h"
#include "client/cpp/c_api.h"
#include "client/cpp/capture_call.h"
#include "client/cpp/capture_response.h"
#include "client/cpp/client.h"
#include "client/cpp/offered_memory.h"
#include "client/cpp/resumable_capture.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/base/status.h"
#include "server/base/steady.h"

int main() {
  using namespace hookline::client;
  // No server listens on port 1.
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect("127.0.0.1:1");
  if (!client.ok()) {
    std::fprintf(stderr, "connect: %s\n", std::string(client.status().message()).c_str());
    return 1;
  }
  hookline::v1::CaptureRequest request;
  request.add_hook_points("blocks.0.hook_resid_post");
  ResumableCapture capture([&](const std::string& token) {
    request.set_resume_token(token);
    return (*client)->Capture(request);
  });
  capture.Call();
  const absl::StatusOr<std::optional<CaptureEvent>> event = capture.Next();
  if (!absl::IsUnavailable(event.status()) || capture.NextReconnect(event.status()).has_value()) {
    std::fprintf(stderr, "next: %s\n", std::string(event.status().message()).c_str());
    return 1;
  }
  return 0;
}
