#include "server/service/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "server/base/descriptor_limit.h"
#include "server/base/listen_address.h"
#include "server/base/status.h"
#include "server/service/auth/authenticator.h"
#include "server/service/auth/connection_origins.h"
#include "server/service/auth/roles.h"
#include "server/service/connection_acceptor.h"
#include "server/service/origin_server.h"
#include "server/service/origin_servers.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// Time for readers to take the summaries that Engine::Drain hands out at its deadline.
constexpr absl::Duration kSummaryGrace = absl::Seconds(5);
// Time for what is written to reach the socket, and for calls that never end (health's Watch) to be cancelled.
constexpr absl::Duration kFlushGrace = absl::Seconds(1);
// Connections may have half of the descriptors, and shared memory an eighth (shared_memory/listener.cc); files have
// the rest.
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

// Anyone who can connect may use a server without identities, so a server must not let other machines connect to it by
// an oversight.
absl::Status CheckExposure(const ServerOptions& options, const Authenticator& authenticator) {
  if (authenticator.has_identities() || options.insecure) return absl::OkStatus();
  for (const std::string& address : options.listen) {
    ASSIGN_OR_RETURN(const bool is_loopback, IsLoopbackAddress(address));
    if (is_loopback) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen ", address,
        ": other machines can reach this address, and without --auth-file anyone who can connect may use the server; "
        "give an auth file (`hookline token`), or --insecure if you want that"));
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
      : parts_(options, engine, recorder, std::move(authenticator), std::move(certificates)),
        servers_(&parts_, origins_.size()) {}

  absl::Status Listen() {
    const ServerOptions& options = parts_.options;
    RETURN_IF_ERROR(CheckEveryMethodHasARole(ServiceNames(parts_)));
    RETURN_IF_ERROR(acceptor_.Bind(options.listen));
    // Users' servers start when the users connect. The one for other machines starts now, to see if gRPC can start any.
    RETURN_IF_ERROR(servers_.Prepare(0, origins_.origin(0)));
    std::vector<int> tcp_ports;
    for (const BoundAddress& bound : acceptor_.bound()) {
      ports_.push_back(bound.port);
      if (bound.unix_path.empty()) tcp_ports.push_back(bound.port);
    }
    parts_.memories.Listen(tcp_ports, options.shared_memory_bytes);
    servers_.SetServing(true);
    Accept(options);
    return absl::OkStatus();
  }

  const std::vector<int>& ports() const override { return ports_; }
  bool is_loopback(size_t index) const override { return acceptor_.bound()[index].is_loopback; }

  void Reload() override {
    parts_.authenticator->Reload().IgnoreError();
    if (parts_.certificates != nullptr) parts_.certificates->Reload().IgnoreError();
  }

  void Drain(absl::Time deadline) override {
    absl::MutexLock lock(&drain_mutex_);
    if (drained_) return;
    servers_.SetServing(false);
    // Engine::Drain waits for readers that may never read; the deadline here ends their calls, and so that wait.
    absl::Notification captures_ended;
    std::thread drain([&] {
      parts_.engine->Drain(deadline);
      if (parts_.recorder != nullptr) parts_.recorder->WaitUntilIdle();
      captures_ended.Notify();
    });
    captures_ended.WaitForNotificationWithDeadline(deadline + kSummaryGrace);
    acceptor_.Stop();
    servers_.Shutdown(captures_ended.HasBeenNotified() ? kFlushGrace : absl::ZeroDuration());
    drain.join();
    drained_ = true;
  }

 private:
  void Accept(const ServerOptions& options) {
    // gRPC sets this for connections that it accepts itself: a peer that acknowledges nothing for this long is gone.
    const unsigned user_timeout = static_cast<unsigned>(GrpcMilliseconds(options.keepalive / 3));
    const auto hand_on = [this, user_timeout](int listener, int connection, const sockaddr_storage& peer) {
      const std::optional<int> slot = origins_.Assign(connection, peer);
      if (!slot.has_value()) {
        spdlog::warn("a connection is refused: too many users are connected");
        close(connection);
        return;
      }
      const absl::Status prepared = servers_.Prepare(*slot, origins_.origin(*slot));
      if (!prepared.ok()) {
        spdlog::warn("a connection is refused: {}", std::string(prepared.message()));
        close(connection);
        return;
      }
      setsockopt(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof user_timeout);
      servers_.HandOn(*slot, listener, connection);
    };
    acceptor_.Run(LimitsOf(options), hand_on, options.on_lost);
  }

  SharedParts parts_;
  ConnectionOrigins origins_;  // used by the acceptor's thread only
  OriginServers servers_;
  std::vector<int> ports_;
  ConnectionAcceptor acceptor_;  // hands connections to servers_
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
  ASSIGN_OR_RETURN(const std::unique_ptr<Authenticator> authenticator, Authenticator::Create(options.auth_file));
  return CheckExposure(options, *authenticator);
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
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace hookline
