#include "server/service/origin_server.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "grpc/health/v1/health.pb.h"
#include "grpc/support/time.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "server/base/status.h"
#include "server/service/auth/port_credentials.h"

namespace hookline {
namespace {

// Returns a deadline for gRPC, on the monotonic clock. gRPC counts times of the wall clock from the program's start,
// which is wrong once the clock has been set.
gpr_timespec After(absl::Duration duration) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(absl::ToInt64Nanoseconds(duration), GPR_TIMESPAN));
}

// Unix sockets have no TLS.
Certificates* CertificatesFor(const SharedParts& parts, const Origin& origin) {
  return origin.kind == OriginKind::kUnix ? nullptr : parts.certificates.get();
}

// Returns the services that reflection lists. These include gRPC's health service, whose descriptors would otherwise
// not be in the program.
std::vector<std::string> ReflectedServices(const SharedParts& parts) {
  google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
  std::vector<std::string> services = ServiceNames(parts);
  services.emplace_back("grpc.health.v1.Health");
  services.emplace_back(grpc::reflection::v1alpha::ServerReflection::service_full_name());
  return services;
}

}  // namespace

SharedParts::SharedParts(const ServerOptions& server_options, Engine* engine_of_all, Recorder* recorder_of_all,
                         std::unique_ptr<Authenticator> authenticator_of_all,
                         std::unique_ptr<Certificates> certificates_of_all)
    : options(server_options),
      engine(engine_of_all),
      recorder(recorder_of_all),
      authenticator(std::move(authenticator_of_all)),
      certificates(std::move(certificates_of_all)),
      quota("hookline"),
      texts(engine, options.tokenizers, options.sidecars) {
  if (recorder != nullptr) recording_threads.emplace();
  quota.Resize(static_cast<size_t>(options.max_incoming_bytes));
}

std::vector<std::string> ServiceNames(const SharedParts& parts) {
  std::vector<std::string> services = {
      v1::CaptureService::service_full_name(),    v1::ModelService::service_full_name(),
      v1::DatasetService::service_full_name(),    v1::TokenizerService::service_full_name(),
      v1::DictionaryService::service_full_name(), v1::EvaluationService::service_full_name()};
  if (parts.recorder != nullptr) services.emplace_back(v1::RecordingService::service_full_name());
  return services;
}

int GrpcMilliseconds(absl::Duration duration) {
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(duration), INT_MAX));
}

OriginServer::OriginServer(SharedParts* parts, Origin origin)
    : parts_(parts),
      origin_(origin),
      caller_(parts->authenticator.get(), parts->options.call_metrics, origin,
              CertificatesFor(*parts, origin) == nullptr ? Transport::kClear : Transport::kTls),
      capture_service_(caller_, parts->engine, parts->recorder, &parts->memories, &parts->texts, &parts->capture_wakes),
      model_service_(caller_, parts->engine, parts->options.tokenizers),
      dataset_service_(caller_, parts->engine, &parts->texts),
      tokenizer_service_(caller_, &parts->texts),
      dictionary_service_(caller_, parts->engine, &parts->score_wakes),
      evaluation_service_(caller_, parts->engine, &parts->texts, &parts->score_wakes),
      reflection_service_(caller_, ReflectedServices(*parts), &parts->capture_wakes) {
  if (parts->recorder != nullptr) {
    recording_service_.emplace(caller_, parts->recorder, &parts->memories, &parts->texts, &*parts->recording_threads);
  }
}

absl::StatusOr<std::unique_ptr<OriginServer>> OriginServer::Start(SharedParts* parts, Origin origin) {
  std::unique_ptr<OriginServer> server(new OriginServer(parts, origin));
  RETURN_IF_ERROR(server->Build());
  server->SetServing(false);
  return server;
}

absl::Status OriginServer::Build() {
  const ServerOptions& options = parts_->options;
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  credentials_ = PortCredentials(CertificatesFor(*parts_, origin_));
  acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials_);
  builder.RegisterService(&capture_service_).RegisterService(&model_service_).RegisterService(&dataset_service_);
  builder.RegisterService(&tokenizer_service_).RegisterService(&dictionary_service_);
  builder.RegisterService(&evaluation_service_).RegisterService(&reflection_service_);
  if (recording_service_.has_value()) builder.RegisterService(&*recording_service_);
  builder.SetResourceQuota(parts_->quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_request_bytes));
  // gRPC decompresses a message before it compares its size with the limit, and before the caller is identified: 64 MiB
  // can become 64 GiB. So compressed messages are refused as UNIMPLEMENTED, and never decompressed.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, GrpcMilliseconds(options.handshake_timeout));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, GrpcMilliseconds(options.connection_idle));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_calls_per_connection);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, GrpcMilliseconds(options.keepalive));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, GrpcMilliseconds(options.keepalive / 3));
  // Clients that wait for rows may send keepalive pings too; the default closes the connections of those that do so
  // more often than every five minutes.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  server_ = builder.BuildAndStart();
  return server_ == nullptr ? absl::UnavailableError("gRPC cannot start its server") : absl::OkStatus();
}

OriginServer::~OriginServer() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

void OriginServer::HandOn(int listener, int connection) {
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
  parameters.listener_fd = listener;
  parameters.fd = connection;
  acceptor_->HandleNewConnection(&parameters);
}

void OriginServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
  health.SetServingStatus("", serving);
  for (const std::string& service : ServiceNames(*parts_)) health.SetServingStatus(service, serving);
}

void OriginServer::Shutdown(absl::Duration grace) {
  server_->Shutdown(After(grace));
  server_->Wait();
}

}  // namespace hookline
