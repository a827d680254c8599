#include "server/base/socket_peer.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <unistd.h>

#include <array>
#include <cstring>

namespace hookline {
namespace {

// The kernel answers at once; if it ever does not, it must not hold up the caller.
constexpr timeval kAnswerTime = {/*tv_sec=*/0, /*tv_usec=*/200'000};

struct Query {
  nlmsghdr header;
  inet_diag_req_v2 request;
};

// Fills in one end of the connection in question: the port and the address in network order.
void Fill(const sockaddr_storage& end, __be16* port, __be32 (*address)[4]) {
  if (end.ss_family == AF_INET6) {
    const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(end);
    *port = ipv6.sin6_port;
    std::memcpy(*address, &ipv6.sin6_addr, sizeof ipv6.sin6_addr);
  } else {
    const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(end);
    *port = ipv4.sin_port;
    (*address)[0] = ipv4.sin_addr.s_addr;
  }
}

// Turns an IPv4-mapped IPv6 address into the IPv4 address. IPv4 clients of a socket of both families have
// mapped addresses.
sockaddr_storage Plain(const sockaddr_storage& address) {
  const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(address);
  if (address.ss_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&ipv6.sin6_addr)) return address;
  sockaddr_storage plain = {};
  auto& ipv4 = reinterpret_cast<sockaddr_in&>(plain);
  ipv4.sin_family = AF_INET;
  ipv4.sin_port = ipv6.sin6_port;
  std::memcpy(&ipv4.sin_addr, &ipv6.sin6_addr.s6_addr[12], sizeof ipv4.sin_addr);
  return plain;
}

std::optional<uint32_t> Ask(const Query& query) {
  const int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (netlink < 0) return std::nullopt;
  setsockopt(netlink, SOL_SOCKET, SO_RCVTIMEO, &kAnswerTime, sizeof kAnswerTime);
  alignas(nlmsghdr) std::array<char, 4096> answer;
  ssize_t received = -1;
  if (send(netlink, &query, sizeof query, 0) == static_cast<ssize_t>(sizeof query)) {
    received = recv(netlink, answer.data(), answer.size(), 0);
  }
  close(netlink);
  constexpr size_t kLeast = NLMSG_HDRLEN + sizeof(inet_diag_msg);
  if (received < static_cast<ssize_t>(kLeast)) return std::nullopt;
  nlmsghdr header;
  std::memcpy(&header, answer.data(), sizeof header);
  if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY) return std::nullopt;
  inet_diag_msg found;
  std::memcpy(&found, answer.data() + NLMSG_HDRLEN, sizeof found);
  // A connection that is being closed has no owner any more, and the kernel reports user 0.
  constexpr uint8_t kEstablished = 1;
  if (found.idiag_state != kEstablished || found.idiag_inode == 0) return std::nullopt;
  return found.idiag_uid;
}

}  // namespace

uint64_t SocketCookie(int socket) {
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  return getsockopt(socket, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 ? cookie : 0;
}

bool IsLoopbackAddress(const sockaddr_storage& address) {
  const sockaddr_storage plain = Plain(address);
  if (plain.ss_family == AF_INET) {
    return (ntohl(reinterpret_cast<const sockaddr_in&>(plain).sin_addr.s_addr) >> 24) == 127;
  }
  return plain.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(plain).sin6_addr);
}

std::optional<uint32_t> UnixPeerUid(int socket) {
  ucred peer = {};
  socklen_t length = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return std::nullopt;
  return peer.uid;
}

std::optional<uint32_t> LoopbackPeerUid(int socket) {
  sockaddr_storage own = {};
  sockaddr_storage peer = {};
  socklen_t own_length = sizeof own;
  socklen_t peer_length = sizeof peer;
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&own), &own_length) != 0 ||
      getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &peer_length) != 0) {
    return std::nullopt;
  }
  own = Plain(own);
  peer = Plain(peer);
  // Asks for the peer's own socket: its source is our peer's address.
  Query query = {};
  query.header.nlmsg_len = sizeof query;
  query.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  query.header.nlmsg_flags = NLM_F_REQUEST;
  query.request.sdiag_family = static_cast<uint8_t>(peer.ss_family);
  query.request.sdiag_protocol = IPPROTO_TCP;
  query.request.idiag_states = ~0U;
  query.request.id.idiag_cookie[0] = query.request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  Fill(peer, &query.request.id.idiag_sport, &query.request.id.idiag_src);
  Fill(own, &query.request.id.idiag_dport, &query.request.id.idiag_dst);
  return Ask(query);
}

}  // namespace hookline
