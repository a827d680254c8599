// Network addresses as people write them.
//
//   ASSIGN_OR_RETURN(HostPort where, ParseHostPort("[::1]:7471"));   // {"::1", 7471}
#ifndef HOOKLINE_SERVER_BASE_ADDRESS_H_
#define HOOKLINE_SERVER_BASE_ADDRESS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

struct HostPort {
  std::string host;  // a name or an address, without brackets; can be empty
  int port = 0;      // 0 to 65535
};

// Parses HOST:PORT, with an IPv6 address in brackets. INVALID_ARGUMENT says what is wrong with `address` and what would
// be right.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view address);

// Checks an address to listen on: HOST:PORT, where an empty host is every interface and port 0 any free one, or
// unix:PATH.
absl::Status CheckListenAddress(absl::string_view address);

// Checks a server's address: HOST:PORT, or one of gRPC's names (dns:///HOST:PORT, ipv4:, ipv6:, unix:, unix-abstract:,
// vsock:).
absl::Status CheckServerAddress(absl::string_view address);

// Returns host and port of a server's address that passed CheckServerAddress. The host is empty for sockets that have
// none.
HostPort ServerHostPort(absl::string_view address);

// Returns whether a host is this machine's loopback interface: localhost, an address in 127.0.0.0/8, or ::1.
bool IsLoopbackHost(absl::string_view host);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_ADDRESS_H_
