// Where a connection comes from: another machine, this one by TCP, or a unix socket, and of which user.
//
// gRPC says of a call no more than its peer's address, which for unix sockets is empty. But it keeps connections apart
// by the port that they were handed to, so that there is a port for each kind of origin: a slot.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

enum class OriginKind {
  kRemote,    // another machine
  kLoopback,  // this machine, by TCP
  kUnix,      // this machine, by a unix socket
};

struct Origin {
  OriginKind kind = OriginKind::kRemote;
  std::optional<uint32_t> uid;  // of the user at the other end; none where the kernel does not tell

  // The form that it has as a property of gRPC's connections: `unix 1000`, `loopback`.
  std::string ToText() const;
  static std::optional<Origin> FromText(absl::string_view text);
};

// Thread-safe, but for Assign.
class ConnectionOrigins {
 public:
  ConnectionOrigins();

  int size() const { return static_cast<int>(slots_.size()); }
  // The kind of a slot never changes.
  OriginKind kind(int slot) const { return slots_[static_cast<size_t>(slot)].kind; }
  // The origin of every connection that has the slot.
  Origin origin(int slot) const ABSL_LOCKS_EXCLUDED(mutex_);

  // The slot of a new connection. None: users have taken every slot, and connections of theirs are still open; a
  // connection by TCP has a slot without a user then, one by a unix socket is to be closed. To be called by one thread.
  std::optional<int> Assign(int connection, const sockaddr_storage& peer) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Slot {
    OriginKind kind;
    bool has_user;  // or it is every user's, or an unknown one's
    std::optional<uint32_t> uid;
    // Descriptors and cookies of the connections that were given the slot, while it has a user.
    std::vector<std::pair<int, uint64_t>> connections;
  };

  std::optional<int> SlotOfUser(OriginKind kind, uint32_t uid) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::vector<Slot> slots_;  // their kinds are fixed, the rest is guarded by mutex_
  mutable absl::Mutex mutex_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_CONNECTION_ORIGINS_H_
