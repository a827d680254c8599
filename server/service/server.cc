#include "server/service/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

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
#include "server/service/capture_service.h"
#include "server/service/connection_acceptor.h"
#include "server/service/dataset_service.h"
#include "server/service/model_service.h"
#include "server/service/recording_service.h"
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
  GrpcServer(Engine* engine, Recorder* recorder)
      : engine_(engine),
        recorder_(recorder),
        capture_service_(engine, recorder, &memories_),
        model_service_(engine),
        dataset_service_(engine) {
    if (recorder != nullptr) recording_service_.emplace(recorder, &memories_);
  }

  ~GrpcServer() override {
    if (server_ == nullptr) return;
    acceptor_.Stop();
    server_->Shutdown(After(absl::ZeroDuration()));
    server_->Wait();
  }

  absl::Status Listen(const ServerOptions& options) {
    RETURN_IF_ERROR(CheckOptions(options));
    RETURN_IF_ERROR(acceptor_.Bind(options.listen));
    grpc::EnableDefaultHealthCheckService(true);
    // gRPC's own service has no descriptors for reflection to give out.
    google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    hand_on_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, grpc::InsecureServerCredentials());
    builder.RegisterService(&capture_service_).RegisterService(&model_service_).RegisterService(&dataset_service_);
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

  void Accept(const ServerOptions& options) {
    // gRPC sets this for connections that it accepts itself: a peer that acknowledges nothing for so long is gone.
    const unsigned user_timeout = static_cast<unsigned>(Milliseconds(options.keepalive / 3));
    const auto hand_on = [this, user_timeout](int listener, int connection) {
      setsockopt(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof user_timeout);
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
      parameters.listener_fd = listener;
      parameters.fd = connection;
      hand_on_->HandleNewConnection(&parameters);
    };
    acceptor_.Run(LimitsOf(options), hand_on, options.on_lost);
  }

  void SetServing(bool serving) {
    grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
    for (const char* service : {"", v1::CaptureService::service_full_name(), v1::ModelService::service_full_name(),
                                v1::DatasetService::service_full_name()}) {
      health.SetServingStatus(service, serving);
    }
    if (recording_service_.has_value()) {
      health.SetServingStatus(v1::RecordingService::service_full_name(), serving);
    }
  }

  Engine* const engine_;
  Recorder* const recorder_;
  SharedMemoryListener memories_;
  CaptureServiceImpl capture_service_;
  ModelServiceImpl model_service_;
  DatasetServiceImpl dataset_service_;
  std::optional<RecordingServiceImpl> recording_service_;
  std::vector<int> ports_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> hand_on_;
  std::unique_ptr<grpc::Server> server_;
  ConnectionAcceptor acceptor_;  // hands to the server
  absl::Mutex drain_mutex_;
  bool drained_ ABSL_GUARDED_BY(drain_mutex_) = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Engine* engine,
                                                      Recorder* recorder) {
  auto server = std::make_unique<GrpcServer>(engine, recorder);
  RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace hookline
