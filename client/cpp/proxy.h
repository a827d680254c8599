// Describes the proxies that environment variables make gRPC use.
#ifndef HOOKLINE_CLIENT_CPP_PROXY_H_
#define HOOKLINE_CLIENT_CPP_PROXY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline::client {

// Returns a phrase about the proxy on the way to a server's address: its URL without the password, the variable that
// names it, and how to avoid it. Empty if gRPC connects to the server directly.
std::string ProxyOnTheWay(absl::string_view address);

// Returns `status`, and adds `proxy` (see ProxyOnTheWay) to the message of UNAVAILABLE, unless the message has
// it already.
absl::Status NameProxy(const absl::Status& status, const std::string& proxy);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_PROXY_H_
