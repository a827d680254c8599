// The origin of a connection: another machine, this one by TCP, or a unix socket, and of which user.
//
// gRPC says of a call no more than its peer's address, which for unix sockets is empty. So the connections of each
// origin are handed to a server of gRPC's of their own, whose handlers know it: a slot here.
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
  std::optional<uint32_t> uid;  // of the user at the other end; none where the kernel does not tell

  friend bool operator==(const Origin& a, const Origin& b) { return a.kind == b.kind && a.uid == b.uid; }
};

// Belongs to one thread: the one that accepts connections.
class ConnectionOrigins {
 public:
  ConnectionOrigins();

  int size() const { return static_cast<int>(slots_.size()); }
  // The origin of every open connection that has the slot. Assign gives a slot another user when the last connection of
  // the one before is closed.
  Origin origin(int slot) const;

  // The slot of a new connection. None: users have taken every slot, and connections of theirs are still open; a
  // connection by TCP has a slot without a user then, one by a unix socket is to be closed.
  std::optional<int> Assign(int connection, const sockaddr_storage& peer);

 private:
  struct Slot {
    OriginKind kind;
    bool has_user;  // or it is every user's, or an unknown one's
    std::optional<uint32_t> uid;
    // Descriptors and cookies of the connections that were given the slot, while it has a user.
    std::vector<std::pair<int, uint64_t>> connections;
  };

  std::optional<int> SlotOfUser(OriginKind kind, uint32_t uid);

  std::vector<Slot> slots_;  // their kinds are fixed
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_
