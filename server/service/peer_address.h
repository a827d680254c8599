// The client's address, as limits per address count it.
#ifndef HOOKLINE_SERVER_SERVICE_PEER_ADDRESS_H_
#define HOOKLINE_SERVER_SERVICE_PEER_ADDRESS_H_

#include <string>

#include "absl/strings/string_view.h"

namespace hookline {

// `peer` is grpc::ServerContextBase::peer(): `ipv4:10.0.0.7:41234`, `ipv6:%5Bfe80::1%5D:41234`, `unix:PATH`. Returns
// the address without the port: `10.0.0.7`, `fe80::1`; an IPv4 address that came over an IPv6 socket in IPv4's form;
// `unix` for all local sockets, whose names say nothing; anything else unchanged.
std::string PeerAddress(absl::string_view peer);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_PEER_ADDRESS_H_
