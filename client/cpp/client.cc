#include "client/cpp/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/proxy.h"
#include "client/cpp/rpc_status.h"
#include "grpc/support/time.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "hookline/v1/dataset_service.grpc.pb.h"
#include "hookline/v1/model_service.grpc.pb.h"
#include "hookline/v1/tokenizer_service.grpc.pb.h"
#include "server/base/address.h"
#include "server/base/shared_pieces.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// Returns a deadline that does not move when the wall clock is set.
gpr_timespec After(absl::Duration duration) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(absl::ToInt64Nanoseconds(duration), GPR_TIMESPAN));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& given_address,
                                                        const ClientOptions& options) {
  TlsOptions tls = options.tls;
  ASSIGN_OR_RETURN(const std::string address, TakeScheme(given_address, &tls));
  if (absl::Status status = CheckServerAddress(address); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("address: ", status.message()));
  }
  if (options.max_receive_bytes < 1 || options.max_receive_bytes > kMaxReceiveBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_receive_bytes: ", options.max_receive_bytes, " is not between 1 and ", kMaxReceiveBytes));
  }
  if (options.shared_memory_bytes != 0 &&
      (options.shared_memory_bytes < kMinSharedMemoryBytes || options.shared_memory_bytes > kMaxSharedMemoryBytes ||
       options.shared_memory_bytes % kSharedPageBytes != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("shared_memory_bytes: ", options.shared_memory_bytes,
                                                   " is neither 0 nor a multiple of ", kSharedPageBytes, " from ",
                                                   kMinSharedMemoryBytes, " to ", kMaxSharedMemoryBytes));
  }
  RETURN_IF_ERROR(CheckToken(options.token, address, tls));
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials, ChannelCredentials(tls));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.max_receive_bytes));
  // gRPC's defaults are 1 and 120 seconds, during which every call fails at once: a resume would miss a
  // restarted server.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // A call that stays on this machine never goes through a proxy.
  if (IsLoopbackHost(ServerHostPort(address).host)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  Connection connection;
  connection.proxy = ProxyOnTheWay(address);
  connection.channel = grpc::experimental::CreateCustomChannelWithInterceptors(address, credentials, arguments,
                                                                               TokenInterceptors(options.token));
  connection.pause_watch = std::make_shared<PauseWatch>(connection.channel);
  connection.address = address;
  connection.shared_memory_bytes = options.shared_memory_bytes;
  return std::unique_ptr<Client>(new Client(std::move(connection), options));
}

Client::Client(Connection connection, const ClientOptions& options)
    : connection_(std::move(connection)), options_(options) {}

template <typename Service, typename Request, typename Response>
absl::StatusOr<Response> Client::Ask(UnaryMethod<Service, Request, Response> method, const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(After(options_.rpc_timeout));
  {
    absl::MutexLock lock(&mutex_);
    if (has_ended_) return absl::CancelledError("the client was told to end its calls");
    contexts_.insert(&context);
  }
  Response response;
  typename Service::Stub stub(connection_.channel);
  const absl::Status status = FromGrpc((stub.*method)(&context, request, &response));
  {
    absl::MutexLock lock(&mutex_);
    contexts_.erase(&context);
  }
  if (!status.ok()) return NameProxy(status, connection_.proxy);
  return response;
}

void Client::EndUnaryCalls() {
  absl::MutexLock lock(&mutex_);
  has_ended_ = true;
  for (grpc::ClientContext* context : contexts_) context->TryCancel();
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels() {
  return Ask<v1::ModelService>(&v1::ModelService::Stub::ListModels, v1::ListModelsRequest());
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& name) {
  v1::GetModelRequest request;
  request.set_name(name);
  return Ask<v1::ModelService>(&v1::ModelService::Stub::GetModel, request);
}

absl::StatusOr<v1::Dataset> Client::GetDataset(const std::string& name) {
  v1::GetDatasetRequest request;
  request.set_name(name);
  return Ask<v1::DatasetService>(&v1::DatasetService::Stub::GetDataset, request);
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  return Ask<v1::TokenizerService>(&v1::TokenizerService::Stub::Tokenize, request);
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request) {
  return Ask<v1::TokenizerService>(&v1::TokenizerService::Stub::Detokenize, request);
}

absl::StatusOr<v1::EstimateCaptureResponse> Client::EstimateCapture(const v1::CaptureRequest& request) {
  v1::EstimateCaptureRequest estimate;
  *estimate.mutable_capture() = request;
  return Ask<v1::CaptureService>(&v1::CaptureService::Stub::EstimateCapture, estimate);
}

std::unique_ptr<CaptureCall> Client::Capture(const v1::CaptureRequest& request) {
  return std::make_unique<CaptureCall>(connection_, kCaptureMethod, request.SerializeAsString(),
                                       /*streams_tokens=*/false);
}

std::unique_ptr<CaptureCall> Client::CaptureStream(const v1::CaptureRequest& request) {
  v1::CaptureStreamRequest first;
  *first.mutable_request() = request;
  return std::make_unique<CaptureCall>(connection_, kCaptureStreamMethod, first.SerializeAsString(),
                                       /*streams_tokens=*/true);
}

}  // namespace hookline::client
