// Accepts the server's connections, and goes on after running out of descriptors.
//
// gRPC 1.51 gives up its listener for good at the first accept that fails, while health still says SERVING. So the
// server accepts connections itself, limits them, and hands them on to gRPC.
#ifndef HOOKLINE_SERVER_SERVICE_CONNECTION_ACCEPTOR_H_
#define HOOKLINE_SERVER_SERVICE_CONNECTION_ACCEPTOR_H_

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/listen_address.h"

namespace hookline {

struct ConnectionLimits {
  int all = 512;
  int per_address = 256;
};

class ConnectionAcceptor {
 public:
  ConnectionAcceptor() = default;
  // Stops. Connections that were handed on stay open.
  ~ConnectionAcceptor();
  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  // Binds each of the addresses; errors of BindAddress. From now on clients can connect, and wait until Run.
  absl::Status Bind(const std::vector<std::string>& addresses);
  // The bound addresses, in the order given to Bind.
  const std::vector<BoundAddress>& bound() const { return bound_; }

  // Takes over an accepted connection's descriptor; must not block.
  using HandOn = std::function<void(int listener, int connection, const sockaddr_storage& peer)>;

  // Begins to accept, on a thread of its own. `hand_on` gets each connection; its owner closes it. Connections
  // beyond the limits are closed at once. `lost` is called once, on that thread, if a listener cannot accept any more.
  void Run(const ConnectionLimits& limits, HandOn hand_on, std::function<void(absl::Status)> lost);

  // Stops accepting. Idempotent. Must not be called from `hand_on` or `lost`.
  void Stop();

 private:
  // Identifies a connection by its descriptor and the kernel's cookie, which is never used twice: the descriptor's
  // owner may close it at any time, and the kernel may then give the number to something else.
  struct Connection {
    int descriptor;
    uint64_t cookie;
    std::string address;
  };

  void Loop();
  enum class Accepted { kNone, kOne, kNoDescriptors, kLost };
  Accepted AcceptFrom(int listener);
  // Counts the connection; false if there are too many.
  bool Count(int connection, const std::string& address);
  int CountOf(const std::string& address) const;
  void ForgetClosed();
  void LogRefusal(const std::string& why);

  std::vector<BoundAddress> bound_;
  ConnectionLimits limits_;
  HandOn hand_on_;
  std::function<void(absl::Status)> lost_;
  int stop_ = -1;  // readable when the thread is to end
  std::thread thread_;

  // Only the thread uses these.
  std::vector<Connection> connections_;
  std::map<std::string, int> by_address_;
  absl::Time last_refusal_logged_ = absl::InfinitePast();
  int64_t refusals_ = 0;  // since then
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_CONNECTION_ACCEPTOR_H_
