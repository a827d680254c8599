// A server in this process whose captures are counted rows: row r of hook point h holds FakeValue(h, r) in each column.
#ifndef HOOKLINE_TESTS_CLIENT_CAPTURE_SERVER_H_
#define HOOKLINE_TESTS_CLIENT_CAPTURE_SERVER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"

namespace hookline::client {

inline constexpr int kFakeWidth = 3;

inline float FakeValue(int hook_point, int64_t row) {
  return static_cast<float>(row) + 1000.0f * static_cast<float>(hook_point);
}

// What the server grants and does. Changes hold for calls that begin later.
struct Script {
  std::vector<int64_t> budgets = {10, 10};  // one for each hook point; rows end with the largest
  int group_rows = 3;
  std::string fingerprint = "weights";
  std::deque<int> breaks;  // each call ends with UNAVAILABLE after so many chunks; later calls run to the end
  bool holds = false;      // calls wait for Release after their first row group
  bool summary = true;
};

class CaptureServer final : public v1::CaptureService::Service {
 public:
  CaptureServer();
  // Releases what is held.
  ~CaptureServer() override;

  const std::string& address() const { return address_; }
  void Set(Script script);
  void Release();
  // Waits until a call's write has failed, which is how a server learns that the client is gone.
  void AwaitAbandoned();
  // Sequences that were streamed in, in order.
  std::vector<std::vector<uint32_t>> sequences() const;
  // Ends the server; calls that run fail with UNAVAILABLE.
  void Shutdown();

  grpc::Status Capture(grpc::ServerContext*, const v1::CaptureRequest*,
                       grpc::ServerWriter<v1::CaptureResponse>*) override;
  grpc::Status CaptureStream(grpc::ServerContext*,
                             grpc::ServerReaderWriter<v1::CaptureResponse, v1::CaptureStreamRequest>*) override;

 private:
  template <typename Stream>
  grpc::Status Run(const v1::CaptureRequest& request, Stream* stream);

  std::string address_;
  mutable absl::Mutex mutex_;
  Script script_ ABSL_GUARDED_BY(mutex_);
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::vector<uint32_t>> sequences_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace hookline::client

#endif  // HOOKLINE_TESTS_CLIENT_CAPTURE_SERVER_H_
