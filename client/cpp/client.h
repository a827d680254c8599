// The C++ client: describes a server's models and captures from them.
//
//   auto client = hookline::client::Client::Connect("localhost:7471");
//   hookline::v1::CaptureRequest request;
//   request.add_hook_points("blocks.*.hook_resid_post");
//   for (uint32_t id : {256, 72, 105}) request.mutable_tokens()->add_sequences()->add_ids(id);
//   std::unique_ptr<hookline::client::CaptureCall> call = (*client)->Capture(request);
//   // see capture_call.h for the loop over call->Next()
#ifndef HOOKLINE_CLIENT_CPP_CLIENT_H_
#define HOOKLINE_CLIENT_CPP_CLIENT_H_

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/capture_call.h"
#include "client/cpp/security.h"
#include "hookline/v1/capture_service.pb.h"
#include "hookline/v1/dataset_service.pb.h"
#include "hookline/v1/model_service.pb.h"
#include "hookline/v1/tokenizer_service.pb.h"

namespace hookline::client {

inline constexpr char kCaptureMethod[] = "/hookline.v1.CaptureService/Capture";
inline constexpr char kCaptureStreamMethod[] = "/hookline.v1.CaptureService/CaptureStream";
inline constexpr char kReadRecordingMethod[] = "/hookline.v1.RecordingService/ReadRecording";

// The largest message that gRPC receives by default, and the largest that a server sends on request.
inline constexpr int64_t kDefaultReceiveBytes = int64_t{4} << 20;
inline constexpr int64_t kMaxReceiveBytes = int64_t{16} << 20;

// The least and the most memory that a client can offer to a server.
inline constexpr int64_t kMinSharedMemoryBytes = int64_t{64} << 10;
inline constexpr int64_t kMaxSharedMemoryBytes = int64_t{64} << 20;

struct ClientOptions {
  // The largest message to accept, up to kMaxReceiveBytes. A request's `max_message_bytes` must not exceed it.
  int64_t max_receive_bytes = kDefaultReceiveBytes;
  // The longest time that any method but captures waits for an answer. Captures wait for ever.
  absl::Duration rpc_timeout = absl::Seconds(30);
  // The size of the memory through which each capture receives values from a server on this machine, a multiple of 4096
  // from 64 KiB to 64 MiB; 0: they come over the wire. A larger default would not stay in the processor's cache.
  int64_t shared_memory_bytes = int64_t{8} << 20;
  // An address that begins with grpcs:// turns TLS on, too.
  TlsOptions tls;
  // Says with every call who this client is; empty: nobody. Allowed only with TLS, or if the server is on this machine.
  std::string token;
};

// Thread-safe. Errors of calls are the server's status with the field it names (hookline::FieldOf), or UNAVAILABLE if
// there is no server.
class Client {
 public:
  // Opens a channel to `address`, [grpcs://]host:port. Sends nothing yet, so that an absent server is found by the
  // first call. INVALID_ARGUMENT: a malformed address (base/address.h) or an option out of range.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& address, const ClientOptions& options = {});

  absl::StatusOr<v1::ListModelsResponse> ListModels();

  // "" names the only model.
  absl::StatusOr<v1::Model> GetModel(const std::string& name);

  absl::StatusOr<v1::Dataset> GetDataset(const std::string& name);

  // Convert texts to token ids and back with a model's tokenizer.
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request);

  // Estimates the rows, bytes and time of a capture; runs nothing.
  absl::StatusOr<v1::EstimateCaptureResponse> EstimateCapture(const v1::CaptureRequest& request);

  // Makes running and later calls of the methods above fail soon with CANCELLED, for a caller that does not want to
  // wait for a server that hangs. Captures continue. Idempotent.
  void EndUnaryCalls();

  // Never returns null. The call may outlive this client.
  std::unique_ptr<CaptureCall> Capture(const v1::CaptureRequest& request);

  // The request has no source; sequences follow with WriteTokens.
  std::unique_ptr<CaptureCall> CaptureStream(const v1::CaptureRequest& request);

  const Connection& connection() const { return connection_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return connection_.channel; }

 private:
  template <typename Service, typename Request, typename Response>
  using UnaryMethod = grpc::Status (Service::Stub::*)(grpc::ClientContext*, const Request&, Response*);

  Client(Connection connection, const ClientOptions& options);

  template <typename Service, typename Request, typename Response>
  absl::StatusOr<Response> Ask(UnaryMethod<Service, Request, Response> method, const Request& request);

  const Connection connection_;
  const ClientOptions options_;

  absl::Mutex mutex_;
  std::set<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mutex_);  // those of running calls
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_CLIENT_H_
