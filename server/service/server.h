// The gRPC server in front of an engine: its services, health and reflection, addresses and limits.
//
//   ServerOptions options;
//   options.listen = {"127.0.0.1:0"};
//   auto server = Server::Start(options, engine.get());
//   (*server)->ports();                                  // where it listens
//   (*server)->Drain(absl::Now() + absl::Seconds(30));   // when asked to end
#ifndef HOOKLINE_SERVER_SERVICE_SERVER_H_
#define HOOKLINE_SERVER_SERVICE_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/dataset/sidecar.h"
#include "server/engine/engine.h"
#include "server/metrics/call_metrics.h"
#include "server/recorder/recorder.h"
#include "server/service/auth/certificates.h"
#include "server/text/model_tokenizers.h"

namespace hookline {

struct ServerOptions {
  // HOST:PORT or unix:PATH; port 0: any free one.
  std::vector<std::string> listen = {"127.0.0.1:7471"};
  // TLS 1.2 or later at every HOST:PORT; unix sockets have none.
  TlsOptions tls;
  // File of clients (auth/auth_file.h). Empty: there are no identities, and anyone who can connect may use the server.
  std::string auth_file;
  // Allows listening without an auth file on addresses that other machines can reach.
  bool insecure = false;
  // Connections at a time, in all and from one address; more are closed at once. Never more than half of the
  // descriptors that the process may have.
  int max_connections = 512;
  int max_connections_per_address = 256;
  // A connection without calls is closed after this long. gRPC clients make another one at their next call.
  absl::Duration connection_idle = absl::Minutes(5);
  // The time within which a new connection must complete its HTTP/2 handshake; clients need two round trips.
  absl::Duration handshake_timeout = absl::Seconds(10);
  // Called once, from one of the server's threads, if the server cannot accept connections any more. Open connections
  // go on, but only ending the process helps.
  std::function<void(absl::Status)> on_lost = [](const absl::Status&) {};
  // The largest request message. 16 Mi token ids below 2^21 take 48 MiB.
  int64_t max_request_bytes = int64_t{64} << 20;
  // gRPC's own memory for incoming messages that are not complete yet, and for the connections themselves. Beyond it
  // gRPC refuses calls and closes connections, those without calls first.
  int64_t max_incoming_bytes = int64_t{512} << 20;
  // Calls at a time on one connection; more wait in the client.
  int max_calls_per_connection = 1024;
  // A connection on which nothing came for this long is sent a keepalive ping, and closed if no answer comes within a
  // third of that time, so that calls of clients that vanished end.
  absl::Duration keepalive = absl::Seconds(60);
  // Memory of clients on this machine that values are written to instead of being sent
  // (shared_memory/SHARED_MEMORY.md), all of it together; 0: none.
  int64_t shared_memory_bytes = int64_t{1} << 30;
  // The models' tokenizers, which must outlive the server. Null: text is refused.
  const ModelTokenizers* tokenizers = nullptr;
  // The datasets' sidecars, which must outlive the server too. Null: there are none.
  const Sidecars* sidecars = nullptr;
  // Counts the calls, and must outlive the server too. Null: calls are not counted.
  CallMetrics* call_metrics = nullptr;
};

// Thread-safe except for its destructor.
class Server {
 public:
  // Listens and serves. Since an engine's models are on their devices, grpc.health.v1 answers SERVING from the first
  // moment on, for the empty name and for each service. `engine` and `recorder` must outlive the server; without a
  // recorder there is no RecordingService.
  // Errors: INVALID_ARGUMENT for an option out of range, an auth file or a TLS file that is wrong, or, without an auth
  // file, an address that other machines can reach; UNAVAILABLE, naming the address, if it is malformed, taken or not
  // this machine's.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, Engine* engine,
                                                       Recorder* recorder = nullptr);

  // The errors of Start that can be found before there is an engine: options, the auth file and the TLS files.
  static absl::Status Check(const ServerOptions& options);

  // Cancels the calls that still run.
  virtual ~Server() = default;

  // The port of each of ServerOptions::listen; 1 for a unix socket.
  virtual const std::vector<int>& ports() const = 0;
  // Returns whether only this machine can reach ServerOptions::listen[index].
  virtual bool is_loopback(size_t index) const = 0;

  // Reads the auth file and the TLS files again. A file that is wrong is logged, and the previous one stays in force.
  virtual void Reload() = 0;

  // Shuts down gracefully: health says NOT_SERVING, and new captures are refused. Captures that run may go on until
  // `deadline` and are then ended with a summary; calls that have not taken theirs five seconds later are cancelled.
  // Returns when no call is left. Calling it again waits for the first call.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_SERVER_H_
