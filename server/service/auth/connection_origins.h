// The origin of a connection: another machine, or a user of this one, by TCP or by a unix socket.
//
// gRPC tells a handler no more of a call's origin than the peer's address, which for unix sockets is empty. So each
// origin has a gRPC server of its own, which gets the origin's connections and whose handlers know the origin. A slot
// here stands for one such server.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace hookline {

enum class OriginKind {
  kRemote,    // another machine
  kLoopback,  // this machine, by TCP
  kUnix,      // this machine, by a unix socket
};

struct Origin {
  OriginKind kind = OriginKind::kRemote;
  std::optional<uint32_t> uid;  // of the user at the other end; none if the kernel does not say

  friend bool operator==(const Origin& a, const Origin& b) { return a.kind == b.kind && a.uid == b.uid; }
};

// Belongs to one thread: the one that accepts connections.
class ConnectionOrigins {
 public:
  ConnectionOrigins();

  int size() const { return static_cast<int>(slots_.size()); }
  // Returns the origin of all open connections in the slot. Assign may give a slot to another user once the last
  // connection of the user before is closed.
  Origin origin(int slot) const;

  // Returns the slot of a new connection. If its user is unknown, or if other users have open connections in every
  // slot, a TCP connection gets the slot of unknown users; a unix connection gets none, and must be closed.
  std::optional<int> Assign(int connection, const sockaddr_storage& peer);

 private:
  struct Slot {
    OriginKind kind;
    bool has_user;  // false: a slot of other machines or of unknown users
    std::optional<uint32_t> uid;
    // Descriptors and cookies of the slot's connections, if it has a user.
    std::vector<std::pair<int, uint64_t>> connections;
  };

  std::optional<int> SlotOfUser(OriginKind kind, uint32_t uid);

  std::vector<Slot> slots_;  // their kinds are fixed
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_
