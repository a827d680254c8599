// Proxies that gRPC goes through because the environment says so.
#ifndef HOOKLINE_CLIENT_CPP_PROXY_H_
#define HOOKLINE_CLIENT_CPP_PROXY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline::client {

// The proxy on the way to a server's address, without its password, the variable that names it, and how to go without;
// empty where gRPC goes straight there.
std::string ProxyOnTheWay(absl::string_view address);

// The status; UNAVAILABLE with `proxy` (ProxyOnTheWay) after its message, unless that is empty or there already.
absl::Status NameProxy(const absl::Status& status, const std::string& proxy);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_PROXY_H_
