// The facts that the kernel knows about a connected socket and the process at its other end.
#ifndef HOOKLINE_SERVER_BASE_SOCKET_PEER_H_
#define HOOKLINE_SERVER_BASE_SOCKET_PEER_H_

#include <sys/socket.h>

#include <cstdint>
#include <optional>

namespace hookline {

// The kernel's name of a socket, which it never uses twice; 0 for a descriptor that is closed or is not a socket.
uint64_t SocketCookie(int socket);

// Returns whether an address is of this machine's loopback interface.
bool IsLoopbackAddress(const sockaddr_storage& address);

// The user at the other end of a connected unix socket, when it connected (SO_PEERCRED).
std::optional<uint32_t> UnixPeerUid(int socket);

// The user who owns the other end of a connected TCP socket, both ends being on this machine; none where the kernel
// does not tell (it has no sock_diag, the other end is closed, or it lies in another network namespace).
std::optional<uint32_t> LoopbackPeerUid(int socket);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SOCKET_PEER_H_
