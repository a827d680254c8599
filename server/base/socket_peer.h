// The facts that the kernel knows about a connected socket and the process at its other end.
#ifndef HOOKLINE_SERVER_BASE_SOCKET_PEER_H_
#define HOOKLINE_SERVER_BASE_SOCKET_PEER_H_

#include <sys/socket.h>

#include <cstdint>
#include <optional>

namespace hookline {

// Returns the kernel's name of a socket, which it never uses twice; 0 for a descriptor that is closed or is not
// a socket.
uint64_t SocketCookie(int socket);

// Returns whether an address belongs to this machine's loopback interface.
bool IsLoopbackAddress(const sockaddr_storage& address);

// Returns the user who connected the other end of a unix socket (SO_PEERCRED).
std::optional<uint32_t> UnixPeerUid(int socket);

// Returns the user who owns the other end of a TCP connection within this machine; none where the kernel does not know
// it (it has no sock_diag, the other end is closed, or it lies in another network namespace).
std::optional<uint32_t> LoopbackPeerUid(int socket);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SOCKET_PEER_H_
