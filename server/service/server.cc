#include "server/service/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "grpc/health/v1/health.pb.h"
#include "grpc/support/time.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "server/base/descriptor_limit.h"
#include "server/base/status.h"
#include "server/service/auth/authenticator.h"
#include "server/service/auth/connection_origins.h"
#include "server/service/auth/port_credentials.h"
#include "server/service/capture_service.h"
#include "server/service/connection_acceptor.h"
#include "server/service/dataset_service.h"
#include "server/service/dictionary_service.h"
#include "server/service/evaluation_service.h"
#include "server/service/model_service.h"
#include "server/service/recording_service.h"
#include "server/service/text_requests.h"
#include "server/service/tokenizer_service.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// A deadline for gRPC. Of a time of the wall clock gRPC would ask how far it is from the program's start, which is
// wrong once the clock has been set.
gpr_timespec After(absl::Duration duration) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(absl::ToInt64Nanoseconds(duration), GPR_TIMESPAN));
}

// For readers to take the summaries that Engine::Drain hands out at its deadline.
constexpr absl::Duration kSummaryGrace = absl::Seconds(5);
// For what is written to reach the socket, and for calls that never end by themselves (health's Watch) to be cancelled.
constexpr absl::Duration kFlushGrace = absl::Seconds(1);
// Connections may have half of the descriptors, shared memory's a quarter of what is left; files have the rest.
constexpr int64_t kDescriptorsPerConnection = 2;

absl::Status CheckOptions(const ServerOptions& options) {
  if (options.listen.empty()) return InvalidField("listen", "no address; give HOST:PORT");
  if (options.max_request_bytes < 1 << 20 || options.max_request_bytes > int64_t{1} << 30) {
    return InvalidField("max_request_bytes", absl::StrCat(options.max_request_bytes, " is not from 1 MiB to 1 GiB"));
  }
  if (options.max_connections < 1 || options.max_connections_per_address < 1) {
    return InvalidField("max_connections",
                        absl::StrCat(options.max_connections, " and for each address ",
                                     options.max_connections_per_address, "; both must be at least 1"));
  }
  if (options.connection_idle < absl::Seconds(1)) {
    return InvalidField("connection_idle", absl::StrCat(absl::FormatDuration(options.connection_idle), " is below 1s"));
  }
  if (options.max_incoming_bytes < 2 * options.max_request_bytes) {
    return InvalidField("max_incoming_bytes", absl::StrCat(options.max_incoming_bytes, " is less than two messages of ",
                                                           options.max_request_bytes, " (max_request_bytes)"));
  }
  if (options.max_calls_per_connection < 1) {
    return InvalidField("max_calls_per_connection", absl::StrCat(options.max_calls_per_connection, " is below 1"));
  }
  if (options.keepalive < absl::Seconds(1)) {
    return InvalidField("keepalive", absl::StrCat(absl::FormatDuration(options.keepalive), " is below 1s"));
  }
  if (options.shared_memory_bytes < 0) {
    return InvalidField("shared_memory_bytes", absl::StrCat(options.shared_memory_bytes, " is negative"));
  }
  return absl::OkStatus();
}

ConnectionLimits LimitsOf(const ServerOptions& options) {
  const int64_t descriptors = DescriptorLimit();
  ConnectionLimits limits;
  limits.all = static_cast<int>(std::min<int64_t>(options.max_connections, descriptors / kDescriptorsPerConnection));
  limits.per_address = std::min(limits.all, options.max_connections_per_address);
  if (limits.all < options.max_connections) {
    spdlog::warn("at most {} connections instead of {}: the process may have {} descriptors (ulimit -n)", limits.all,
                 options.max_connections, descriptors);
  }
  return limits;
}

class GrpcServer final : public Server {
 public:
  GrpcServer(const ServerOptions& options, Engine* engine, Recorder* recorder,
             std::unique_ptr<Authenticator> authenticator, std::unique_ptr<Certificates> certificates)
      : engine_(engine),
        recorder_(recorder),
        authenticator_(std::move(authenticator)),
        certificates_(std::move(certificates)),
        texts_(engine, options.tokenizers, options.sidecars),
        capture_service_(engine, recorder, &memories_, &texts_, authenticator_.get()),
        model_service_(engine, options.tokenizers),
        dataset_service_(engine, &texts_),
        tokenizer_service_(&texts_),
        dictionary_service_(engine),
        evaluation_service_(engine, &texts_, authenticator_.get()) {
    if (recorder != nullptr) recording_service_.emplace(recorder, &memories_, &texts_, authenticator_.get());
  }

  ~GrpcServer() override {
    if (server_ == nullptr) return;
    acceptor_.Stop();
    server_->Shutdown(After(absl::ZeroDuration()));
    server_->Wait();
  }

  absl::Status Listen(const ServerOptions& options) {
    RETURN_IF_ERROR(CheckEveryMethodHasARole(Services()));
    RETURN_IF_ERROR(acceptor_.Bind(options.listen));
    RETURN_IF_ERROR(CheckExposure(options));
    grpc::EnableDefaultHealthCheckService(true);
    // gRPC's own service has no descriptors for reflection to give out.
    google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    for (int slot = 0; slot < origins_.size(); ++slot) {
      Certificates* const certificates = origins_.kind(slot) == OriginKind::kUnix ? nullptr : certificates_.get();
      credentials_.push_back(PortCredentials(authenticator_.get(), &origins_, slot, certificates));
      hand_on_.push_back(builder.experimental().AddExternalConnectionAcceptor(
          grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials_.back()));
    }
    builder.RegisterService(&capture_service_).RegisterService(&model_service_).RegisterService(&dataset_service_);
    builder.RegisterService(&tokenizer_service_);
    builder.RegisterService(&dictionary_service_).RegisterService(&evaluation_service_);
    if (recording_service_.has_value()) builder.RegisterService(&*recording_service_);
    builder.SetResourceQuota(grpc::ResourceQuota("hookline").Resize(static_cast<size_t>(options.max_incoming_bytes)));
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_request_bytes));
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(options.handshake_timeout));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(options.connection_idle));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_calls_per_connection);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(options.keepalive / 3));
    // Clients that wait for rows may send keepalive pings too; the default closes the connections of those that do so
    // more often than every five minutes.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError("gRPC cannot start its server");
    std::vector<int> tcp_ports;
    for (const BoundAddress& bound : acceptor_.bound()) {
      ports_.push_back(bound.port);
      if (bound.unix_path.empty()) tcp_ports.push_back(bound.port);
    }
    memories_.Listen(tcp_ports, options.shared_memory_bytes);
    SetServing(true);
    Accept(options);
    return absl::OkStatus();
  }

  const std::vector<int>& ports() const override { return ports_; }
  bool is_loopback(size_t index) const override { return acceptor_.bound()[index].is_loopback; }

  void Reload() override {
    authenticator_->Reload().IgnoreError();
    if (certificates_ != nullptr) certificates_->Reload().IgnoreError();
  }

  void Drain(absl::Time deadline) override {
    absl::MutexLock lock(&drain_mutex_);
    if (drained_) return;
    SetServing(false);
    // Engine::Drain waits for readers that may never read; the deadline here ends their calls, and so that wait.
    absl::Notification captures_ended;
    std::thread drain([&] {
      engine_->Drain(deadline);
      if (recorder_ != nullptr) recorder_->WaitUntilIdle();
      captures_ended.Notify();
    });
    captures_ended.WaitForNotificationWithDeadline(deadline + kSummaryGrace);
    acceptor_.Stop();
    server_->Shutdown(After(captures_ended.HasBeenNotified() ? kFlushGrace : absl::ZeroDuration()));
    server_->Wait();
    drain.join();
    drained_ = true;
  }

 private:
  static int Milliseconds(absl::Duration duration) {
    return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(duration), INT_MAX));
  }

  // Anyone who can connect may use a server without identities, so others must not connect by an oversight.
  absl::Status CheckExposure(const ServerOptions& options) const {
    if (authenticator_->has_identities() || options.insecure) return absl::OkStatus();
    for (size_t i = 0; i < options.listen.size(); ++i) {
      if (acceptor_.bound()[i].is_loopback) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "--listen ", options.listen[i],
          ": other machines reach this address, and without --auth-file anyone who can "
          "connect may use the server; give an auth file (`hookline token`), or --insecure if that is wanted"));
    }
    return absl::OkStatus();
  }

  void Accept(const ServerOptions& options) {
    // gRPC sets this for connections that it accepts itself: a peer that acknowledges nothing for so long is gone.
    const unsigned user_timeout = static_cast<unsigned>(Milliseconds(options.keepalive / 3));
    const auto hand_on = [this, user_timeout](int listener, int connection, const sockaddr_storage& peer) {
      const std::optional<int> slot = origins_.Assign(connection, peer);
      if (!slot.has_value()) {
        spdlog::warn("a connection is refused: as many users as this server tells apart are connected");
        close(connection);
        return;
      }
      setsockopt(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof user_timeout);
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
      parameters.listener_fd = listener;
      parameters.fd = connection;
      hand_on_[static_cast<size_t>(*slot)]->HandleNewConnection(&parameters);
    };
    acceptor_.Run(LimitsOf(options), hand_on, options.on_lost);
  }

  // Those of ours, by their full names.
  std::vector<std::string> Services() const {
    std::vector<std::string> services = {
        v1::CaptureService::service_full_name(),    v1::ModelService::service_full_name(),
        v1::DatasetService::service_full_name(),    v1::TokenizerService::service_full_name(),
        v1::DictionaryService::service_full_name(), v1::EvaluationService::service_full_name()};
    if (recording_service_.has_value()) services.emplace_back(v1::RecordingService::service_full_name());
    return services;
  }

  void SetServing(bool serving) {
    grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
    health.SetServingStatus("", serving);
    for (const std::string& service : Services()) health.SetServingStatus(service, serving);
  }

  Engine* const engine_;
  Recorder* const recorder_;
  const std::unique_ptr<Authenticator> authenticator_;
  const std::unique_ptr<Certificates> certificates_;  // null without TLS
  ConnectionOrigins origins_;
  SharedMemoryListener memories_;
  TextRequests texts_;
  CaptureServiceImpl capture_service_;
  ModelServiceImpl model_service_;
  DatasetServiceImpl dataset_service_;
  TokenizerServiceImpl tokenizer_service_;
  DictionaryServiceImpl dictionary_service_;
  EvaluationServiceImpl evaluation_service_;
  std::optional<RecordingServiceImpl> recording_service_;
  std::vector<int> ports_;
  // One for each slot of origins_; gRPC's server calls back into the credentials.
  std::vector<std::shared_ptr<grpc::ServerCredentials>> credentials_;
  std::vector<std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor>> hand_on_;
  std::unique_ptr<grpc::Server> server_;
  ConnectionAcceptor acceptor_;  // hands to the server
  absl::Mutex drain_mutex_;
  bool drained_ ABSL_GUARDED_BY(drain_mutex_) = false;
};

}  // namespace

absl::Status Server::Check(const ServerOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  if (options.tls.is_on()) {
    RETURN_IF_ERROR(ReadTlsFiles(options.tls).status());
  } else if (!options.tls.key.empty() || !options.tls.client_ca.empty()) {
    return absl::InvalidArgumentError("--tls-key and --tls-client-ca need --tls-cert");
  }
  return Authenticator::Create(options.auth_file).status();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Engine* engine,
                                                      Recorder* recorder) {
  RETURN_IF_ERROR(Check(options));
  ASSIGN_OR_RETURN(std::unique_ptr<Authenticator> authenticator, Authenticator::Create(options.auth_file));
  std::unique_ptr<Certificates> certificates;
  if (options.tls.is_on()) {
    ASSIGN_OR_RETURN(certificates, Certificates::Open(options.tls));
  }
  auto server =
      std::make_unique<GrpcServer>(options, engine, recorder, std::move(authenticator), std::move(certificates));
  RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace hookline
