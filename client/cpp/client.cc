#include "client/cpp/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/proxy.h"
#include "client/cpp/rpc_status.h"
#include "grpc/support/time.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "hookline/v1/model_service.grpc.pb.h"
#include "hookline/v1/tokenizer_service.grpc.pb.h"
#include "server/base/address.h"
#include "server/base/shared_pieces.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// A deadline that does not move when the wall clock is set.
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
  // gRPC's own are 1 and 120 seconds, within which every call fails at once: a resume would miss a restarted server.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // A call that stays on this machine never goes through a proxy.
  if (IsLoopbackHost(ServerHostPort(address).host)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  Connection connection;
  connection.proxy = ProxyOnTheWay(address);
  connection.channel = grpc::experimental::CreateCustomChannelWithInterceptors(address, credentials, arguments,
                                                                               TokenInterceptors(options.token));
  connection.address = address;
  connection.shared_memory_bytes = options.shared_memory_bytes;
  return std::unique_ptr<Client>(new Client(std::move(connection), options));
}

Client::Client(Connection connection, const ClientOptions& options)
    : connection_(std::move(connection)), options_(options) {}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels() {
  grpc::ClientContext context;
  context.set_deadline(After(options_.rpc_timeout));
  v1::ListModelsResponse response;
  grpc::Status status = v1::ModelService::NewStub(connection_.channel)->ListModels(&context, {}, &response);
  if (!status.ok()) return NameProxy(FromGrpc(status), connection_.proxy);
  return response;
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& name) {
  grpc::ClientContext context;
  context.set_deadline(After(options_.rpc_timeout));
  v1::GetModelRequest request;
  request.set_name(name);
  v1::Model model;
  grpc::Status status = v1::ModelService::NewStub(connection_.channel)->GetModel(&context, request, &model);
  if (!status.ok()) return NameProxy(FromGrpc(status), connection_.proxy);
  return model;
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(After(options_.rpc_timeout));
  v1::TokenizeResponse response;
  grpc::Status status = v1::TokenizerService::NewStub(connection_.channel)->Tokenize(&context, request, &response);
  if (!status.ok()) return NameProxy(FromGrpc(status), connection_.proxy);
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(After(options_.rpc_timeout));
  v1::DetokenizeResponse response;
  grpc::Status status = v1::TokenizerService::NewStub(connection_.channel)->Detokenize(&context, request, &response);
  if (!status.ok()) return NameProxy(FromGrpc(status), connection_.proxy);
  return response;
}

absl::StatusOr<v1::EstimateCaptureResponse> Client::EstimateCapture(const v1::CaptureRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(After(options_.rpc_timeout));
  v1::EstimateCaptureRequest estimate_request;
  *estimate_request.mutable_capture() = request;
  v1::EstimateCaptureResponse response;
  grpc::Status status =
      v1::CaptureService::NewStub(connection_.channel)->EstimateCapture(&context, estimate_request, &response);
  if (!status.ok()) return NameProxy(FromGrpc(status), connection_.proxy);
  return response;
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
