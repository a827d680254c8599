// Binds listening sockets to addresses as people write them.
#ifndef HOOKLINE_SERVER_BASE_LISTEN_ADDRESS_H_
#define HOOKLINE_SERVER_BASE_LISTEN_ADDRESS_H_

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// The sockets bound to one given address: a name such as `localhost` can stand for several.
struct BoundAddress {
  std::vector<int> sockets;  // listening, not blocking, closed on exec; the owner closes them
  int port = 0;              // the port of all sockets; 1 for a unix socket
  bool is_loopback = true;   // no other machine can reach any of them
  std::string unix_path;     // the file to remove at the end; empty for HOST:PORT
};

// Binds HOST:PORT ([HOST]:PORT for IPv6; port 0: any free one) or unix:PATH, whose socket is replaced if no server
// listens on it any more. A port is never shared with another server. UNAVAILABLE, naming the address: it is malformed,
// in use or not an address of this machine.
absl::StatusOr<BoundAddress> BindAddress(const std::string& address);

// Returns whether no other machine could reach what BindAddress binds. UNAVAILABLE, naming the address: it is malformed
// or cannot be resolved.
absl::StatusOr<bool> IsLoopbackAddress(const std::string& address);

// Returns a client's address without its port, as PeerAddress returns it and limits per address count it; `unix` for
// local sockets, whose names say nothing.
std::string AddressOf(const sockaddr_storage& peer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_LISTEN_ADDRESS_H_
