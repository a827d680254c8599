// A server in this process that captures without a model: the values of a row say which token it belongs to.
#ifndef HOOKLINE_TESTS_CLI_FAKE_SERVER_H_
#define HOOKLINE_TESTS_CLI_FAKE_SERVER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "hookline/v1/model_service.grpc.pb.h"

namespace hookline::cli {

inline constexpr int kFakeWidth = 3;

// Returns the float32 value at a token's row and column. It depends on the hook point's name and not on its place in
// the request, from which a client of several servers leaves out what is full.
inline float FakeValue(absl::string_view hook_point, uint32_t token, int column) {
  return static_cast<float>(token) + 1000.0f * static_cast<float>(hook_point.size()) +
         0.25f * static_cast<float>(column);
}

// Serves one model, `fake`, with 300 tokens, a context of 8 and the hook points `blocks.0.hook_resid_post`,
// `blocks.1.hook_mlp_out` and `odd/name`, each of width 3; and one dataset, `counting`, whose sequence i holds the
// tokens i, i + 1, i + 2.
class FakeServer final : public v1::ModelService::Service, public v1::CaptureService::Service {
 public:
  FakeServer();
  ~FakeServer() override;

  const std::string& address() const { return address_; }

  // Makes the next call break with UNAVAILABLE after `chunks` chunks. Further calls of this queue up.
  void BreakAfter(int chunks);
  // Does the same, but the call first sends the summary of a server that shuts down.
  void ShutDownAfter(int chunks);
  // Changes the model's fingerprint.
  void SetFingerprint(const std::string& fingerprint);
  // While the server is away, every call that begins fails with UNAVAILABLE.
  void SetAway(bool is_away);
  // While the server is frozen, GetModel does not answer, and captures send no chunk.
  void SetFrozen(bool is_frozen);
  // Calls `on_asked`, from a thread of the server, for each GetModel that comes while the server is frozen.
  void OnAskedWhileFrozen(std::function<void()> on_asked);
  // Both wait until a call has started or was cancelled; return false after 20 seconds.
  bool WaitUntilStarted();
  bool WaitUntilCancelled();  // a CaptureStream, by its client

  // Returns every sequence that came, also those that were sent again.
  std::vector<std::vector<uint32_t>> sequences() const;
  // Returns the size of the largest message with tokens.
  int64_t largest_message_bytes() const;
  std::vector<v1::CaptureRequest> requests() const;

  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*, v1::ListModelsResponse*) override;
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*, v1::Model*) override;
  grpc::Status Capture(grpc::ServerContext*, const v1::CaptureRequest*,
                       grpc::ServerWriter<v1::CaptureResponse>*) override;
  grpc::Status CaptureStream(grpc::ServerContext*,
                             grpc::ServerReaderWriter<v1::CaptureResponse, v1::CaptureStreamRequest>*) override;

 private:
  struct Call;
  struct Break {
    int chunks = 0;
    bool sends_summary = false;
  };

  grpc::Status Start(const v1::CaptureRequest& request, Call* call);
  grpc::Status SendSequence(Call& call, const std::vector<uint32_t>& ids);
  static void SendSummary(Call& call, v1::StopReason reason);
  grpc::Status End(Call& call);
  bool is_thawed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !is_frozen_; }

  std::string address_;
  mutable absl::Mutex mutex_;
  std::deque<Break> breaks_ ABSL_GUARDED_BY(mutex_);
  std::string fingerprint_ ABSL_GUARDED_BY(mutex_) = "00112233445566778899aabbccddeeff";
  bool is_away_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_frozen_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void()> on_asked_ ABSL_GUARDED_BY(mutex_);
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::vector<uint32_t>> sequences_ ABSL_GUARDED_BY(mutex_);
  int64_t largest_message_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<v1::CaptureRequest> requests_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_TESTS_CLI_FAKE_SERVER_H_
