#include "server/base/listen_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/address.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// The kernel's maximum: waiting connections cost the server nothing.
constexpr int kBacklog = SOMAXCONN;

constexpr absl::string_view kUnixPrefix = "unix:";

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    return (ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24) == 127;
  }
  if (address->sa_family != AF_INET6) return true;
  const in6_addr& ip = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&ip) || (IN6_IS_ADDR_V4MAPPED(&ip) && ip.s6_addr[12] == 127);
}

// Returns a listening socket, or the kernel's error.
absl::StatusOr<int> Listen(const sockaddr* address, socklen_t length) {
  const int listener = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return absl::ErrnoToStatus(errno, "socket");
  const int on = 1;
  if (address->sa_family != AF_UNIX) {
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    // Accepted connections inherit this option.
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  if (bind(listener, address, length) != 0 || listen(listener, kBacklog) != 0) {
    absl::Status status = absl::ErrnoToStatus(errno, "bind");
    close(listener);
    return status;
  }
  return listener;
}

int PortOf(int listener) {
  sockaddr_storage address = {};
  socklen_t length = sizeof address;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

using Addresses = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

// Returns the addresses of the host, each with its port.
absl::StatusOr<Addresses> Resolve(const HostPort& wanted) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  // An empty host means every interface.
  const char* host = wanted.host.empty() ? nullptr : wanted.host.c_str();
  const int error = getaddrinfo(host, absl::StrCat(wanted.port).c_str(), &hints, &found);
  if (error != 0) return absl::UnavailableError(gai_strerror(error));
  return Addresses(found, freeaddrinfo);
}

bool IsInternet(const addrinfo& address) { return address.ai_family == AF_INET || address.ai_family == AF_INET6; }

// Binds every address of the host that works, at least one: some may be of a family that this machine does not have.
absl::StatusOr<BoundAddress> BindHost(const HostPort& wanted) {
  ASSIGN_OR_RETURN(const Addresses found, Resolve(wanted));
  BoundAddress bound;
  bound.port = wanted.port;
  absl::Status last = absl::UnavailableError("it has no address");
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    if (!IsInternet(*at)) continue;
    // The other sockets take the port that the first one got.
    auto& port = at->ai_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(at->ai_addr)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(at->ai_addr)->sin_port;
    port = htons(static_cast<uint16_t>(bound.port));
    absl::StatusOr<int> listener = Listen(at->ai_addr, at->ai_addrlen);
    if (!listener.ok()) {
      last = listener.status();
      continue;
    }
    bound.sockets.push_back(*listener);
    bound.port = PortOf(*listener);
    bound.is_loopback = bound.is_loopback && IsLoopback(at->ai_addr);
  }
  if (bound.sockets.empty()) return last;
  return bound;
}

absl::StatusOr<BoundAddress> BindUnix(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::UnavailableError(
        absl::StrCat("a socket's path has 1 to ", sizeof address.sun_path - 1, " bytes; this one has ", path.size()));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  // A socket that a server left behind refuses connections.
  struct stat facts;
  if (lstat(path.c_str(), &facts) == 0 && S_ISSOCK(facts.st_mode)) {
    const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(probe, generic, length) != 0 && errno == ECONNREFUSED) unlink(path.c_str());
    close(probe);
  }
  ASSIGN_OR_RETURN(const int listener, Listen(generic, length));
  BoundAddress bound;
  bound.sockets = {listener};
  bound.port = 1;
  bound.unix_path = path;
  return bound;
}

absl::Status CannotListen(const std::string& address, const absl::Status& why) {
  return absl::UnavailableError(absl::StrCat("cannot listen on `", address,
                                             "`: it is malformed, in use or not an address of this machine (",
                                             why.message(), ")"));
}

}  // namespace

absl::StatusOr<BoundAddress> BindAddress(const std::string& address) {
  absl::StatusOr<BoundAddress> bound;
  absl::string_view path = address;
  if (absl::ConsumePrefix(&path, kUnixPrefix)) {
    if (absl::StartsWith(path, "///")) path.remove_prefix(2);
    bound = BindUnix(std::string(path));
  } else {
    const absl::StatusOr<HostPort> parsed = ParseHostPort(address);
    bound = parsed.ok() ? BindHost(*parsed) : parsed.status();
  }
  if (!bound.ok()) return CannotListen(address, bound.status());
  return bound;
}

absl::StatusOr<bool> IsLoopbackAddress(const std::string& address) {
  if (absl::StartsWith(address, kUnixPrefix)) return true;
  const absl::StatusOr<HostPort> parsed = ParseHostPort(address);
  const absl::StatusOr<Addresses> found = parsed.ok() ? Resolve(*parsed) : parsed.status();
  if (!found.ok()) return CannotListen(address, found.status());
  bool is_loopback = true;
  for (const addrinfo* at = found->get(); at != nullptr; at = at->ai_next) {
    is_loopback = is_loopback && (!IsInternet(*at) || IsLoopback(at->ai_addr));
  }
  return is_loopback;
}

std::string AddressOf(const sockaddr_storage& peer) {
  std::array<char, INET6_ADDRSTRLEN> text = {};
  if (peer.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(peer).sin_addr, text.data(), text.size());
    return text.data();
  }
  if (peer.ss_family == AF_INET6) {
    const in6_addr& ip = reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(&ip)) {
      inet_ntop(AF_INET, &ip.s6_addr[12], text.data(), text.size());
    } else {
      inet_ntop(AF_INET6, &ip, text.data(), text.size());
    }
    return text.data();
  }
  return "unix";
}

}  // namespace hookline
