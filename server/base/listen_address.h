// Binds listening sockets to addresses as people write them.
#ifndef HOOKLINE_SERVER_BASE_LISTEN_ADDRESS_H_
#define HOOKLINE_SERVER_BASE_LISTEN_ADDRESS_H_

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// One address that was given, bound: a name such as `localhost` may stand for several sockets.
struct BoundAddress {
  std::vector<int> sockets;  // listening, not blocking, closed on exec; the owner closes them
  int port = 0;              // of all of them; 1 for a unix socket
  bool is_loopback = true;   // no other machine can reach any of them
  std::string unix_path;     // to be removed at the end; empty for HOST:PORT
};

// Binds HOST:PORT ([HOST]:PORT for IPv6; port 0: any free one) or unix:PATH, whose socket is replaced if no server
// listens on it any more. A port is never shared with another server. UNAVAILABLE, naming the address: it is malformed,
// in use or not of this machine.
absl::StatusOr<BoundAddress> BindAddress(const std::string& address);

// Returns whether no other machine could reach what BindAddress binds. UNAVAILABLE, naming the address: it is malformed
// or stands for none.
absl::StatusOr<bool> IsLoopbackAddress(const std::string& address);

// The client's address, as limits per address count it and PeerAddress returns it: without a port; `unix` for local
// sockets, whose names say nothing.
std::string AddressOf(const sockaddr_storage& peer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_LISTEN_ADDRESS_H_
