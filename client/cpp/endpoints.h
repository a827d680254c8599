// The servers that a user names: one or several addresses, a file of addresses, or DNS names of many.
//
//   ASSIGN_OR_RETURN(Endpoints endpoints, ReadEndpoints("node1:7471,node2:7471"));
//   RETURN_IF_ERROR(SpreadNames(/*secure=*/false, ResolveByDns, &endpoints));
#ifndef HOOKLINE_CLIENT_CPP_ENDPOINTS_H_
#define HOOKLINE_CLIENT_CPP_ENDPOINTS_H_

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline::client {

// A capture has a few threads for each of its servers; the Python client has the same bound.
inline constexpr size_t kMaxServers = 256;

struct Endpoints {
  std::vector<std::string> addresses;  // at least one, each once
  bool is_file = false;                // they come from a file
};

// Reads one address, several separated by commas, or hookline://FILE: the endpoints file that the scripts of deploy/
// write, with one HOST:PORT per line; blank lines, and lines that begin with `#`, are ignored. INVALID_ARGUMENT: the
// file cannot be read or a line is wrong, which the error names; an address is empty or occurs twice; or there are more
// than kMaxServers. Addresses outside of a file are checked by Client::Connect.
absl::StatusOr<Endpoints> ReadEndpoints(absl::string_view text);

// Returns a host's numeric addresses: the IPv4 ones if there are any, else the IPv6 ones in brackets, since a server
// often has one of each. Returns none if DNS does not know the host.
using ResolveHost = std::function<std::vector<std::string>(const std::string& host)>;
std::vector<std::string> ResolveByDns(const std::string& host);

// Replaces each name that has several addresses by all of them, as headless services of Kubernetes need. Addresses from
// a file, and those that gRPC resolves itself (dns:///HOST:PORT), stay as they are. `secure` says that the servers show
// certificates, which name no address: a single name then stays, and such a name in a list is INVALID_ARGUMENT.
absl::Status SpreadNames(bool secure, const ResolveHost& resolve, Endpoints* endpoints);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_ENDPOINTS_H_
