#include "server/base/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace hookline {
namespace {

constexpr int kLargestPort = 65535;

absl::Status Wrong(absl::string_view address, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::CEscape(address), "\" ", why, "; write it like 127.0.0.1:7471 or [::1]:7471"));
}

bool IsIpv6(const std::string& host) {
  in6_addr parsed;
  return inet_pton(AF_INET6, host.c_str(), &parsed) == 1;
}

// Allows letters, digits and the other characters of names and IPv4 addresses.
bool IsHost(absl::string_view host) {
  return std::all_of(host.begin(), host.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '_';
  });
}

// Returns whether gRPC connects to something other than a host.
bool IsSocketName(absl::string_view address) {
  return absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:") ||
         absl::StartsWith(address, "vsock:");
}

// Returns what stands after gRPC's scheme, as in dns://AUTHORITY/HOST:PORT or ipv4:HOST:PORT.
absl::string_view WithoutScheme(absl::string_view address) {
  for (absl::string_view scheme : {"dns:", "ipv4:", "ipv6:"}) {
    if (!absl::ConsumePrefix(&address, scheme)) continue;
    if (absl::ConsumePrefix(&address, "//")) address.remove_prefix(std::min(address.find('/') + 1, address.size()));
    break;
  }
  return address;
}

}  // namespace

absl::StatusOr<HostPort> ParseHostPort(absl::string_view address) {
  if (address.empty()) return Wrong(address, "is empty");
  if (!std::all_of(address.begin(), address.end(), [](char c) { return c > ' ' && c < 0x7f; })) {
    return Wrong(address, "holds spaces or unprintable characters");
  }
  if (const size_t scheme = address.find("://"); scheme != absl::string_view::npos) {
    return Wrong(address, absl::StrCat("begins with ", address.substr(0, scheme), "://; leave that out"));
  }
  HostPort parsed;
  absl::string_view port;
  if (address.front() == '[') {
    const size_t end = address.find(']');
    if (end == absl::string_view::npos || !IsIpv6(std::string(address.substr(1, end - 1)))) {
      return Wrong(address, "is not an IPv6 address in brackets");
    }
    parsed.host = std::string(address.substr(1, end - 1));
    port = address.substr(end + 1);
    if (!absl::ConsumePrefix(&port, ":")) return Wrong(address, "has no port");
  } else {
    const size_t colon = address.rfind(':');
    if (colon == absl::string_view::npos) return Wrong(address, "has no port");
    parsed.host = std::string(address.substr(0, colon));
    if (parsed.host.find(':') != std::string::npos) return Wrong(address, "is an IPv6 address without brackets");
    if (!IsHost(parsed.host)) return Wrong(address, absl::StrCat("has the host \"", parsed.host, "\""));
    port = address.substr(colon + 1);
  }
  const bool is_number = !port.empty() && std::all_of(port.begin(), port.end(), absl::ascii_isdigit);
  if (!is_number || !absl::SimpleAtoi(port, &parsed.port) || parsed.port > kLargestPort) {
    return Wrong(address, absl::StrCat("has the port \"", port, "\", which is not a number up to ", kLargestPort));
  }
  return parsed;
}

absl::Status CheckListenAddress(absl::string_view address) {
  if (absl::ConsumePrefix(&address, "unix:")) {
    return address.empty() ? Wrong("unix:", "has no path") : absl::OkStatus();
  }
  return ParseHostPort(address).status();
}

absl::Status CheckServerAddress(absl::string_view address) {
  if (IsSocketName(address)) return absl::OkStatus();
  absl::StatusOr<HostPort> parsed = ParseHostPort(WithoutScheme(address));
  if (!parsed.ok()) return parsed.status();
  if (parsed->host.empty()) return Wrong(address, "has no host");
  if (parsed->port == 0) return Wrong(address, "has the port \"0\", on which no server listens");
  return absl::OkStatus();
}

HostPort ServerHostPort(absl::string_view address) {
  if (IsSocketName(address)) return {};
  return ParseHostPort(WithoutScheme(address)).value_or(HostPort{});
}

bool IsLoopbackHost(absl::string_view host) {
  if (absl::EqualsIgnoreCase(host, "localhost")) return true;
  const std::string name(host);
  in_addr ipv4;
  if (inet_pton(AF_INET, name.c_str(), &ipv4) == 1) return (ntohl(ipv4.s_addr) >> 24) == 127;
  in6_addr ipv6;
  return inet_pton(AF_INET6, name.c_str(), &ipv6) == 1 && IN6_IS_ADDR_LOOPBACK(&ipv6);
}

}  // namespace hookline
