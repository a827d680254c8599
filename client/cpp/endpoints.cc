#include "client/cpp/endpoints.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <fstream>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/base/address.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

constexpr absl::string_view kScheme = "hookline://";
// This is far more than the addresses of kMaxServers take; a larger file is not an endpoints file.
constexpr size_t kMaxFileBytes = size_t{1} << 20;

absl::StatusOr<std::vector<std::string>> ReadFile(const std::string& path) {
  const std::string name = absl::StrCat(kScheme, Escaped(path));
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (file.bad() || (text.empty() && !file.eof())) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": the file cannot be read"));
  }
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": more than ", kMaxFileBytes, " bytes; the file should have one HOST:PORT per line"));
  }
  std::vector<std::string> addresses;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view address = absl::StripAsciiWhitespace(line);
    if (address.empty() || address.front() == '#') continue;
    if (const absl::Status status = CheckServerAddress(address); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ", line ", number, ": ", status.message()));
    }
    addresses.emplace_back(address);
  }
  if (addresses.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": names no server; the file should have one HOST:PORT per line"));
  }
  return addresses;
}

absl::Status CheckAll(const std::vector<std::string>& addresses) {
  std::set<std::string> seen;
  for (const std::string& address : addresses) {
    if (!seen.insert(address).second) {
      return absl::InvalidArgumentError(absl::StrCat(Escaped(address), " is named twice; each server is one address"));
    }
  }
  if (addresses.size() > kMaxServers) {
    return absl::InvalidArgumentError(
        absl::StrCat(addresses.size(), " servers are named; at most ", kMaxServers, " are allowed"));
  }
  return absl::OkStatus();
}

// Returns the host of an address if it is a name for DNS to resolve, else "".
std::string NameIn(const std::string& address) {
  if (absl::StrContains(address, "://")) return "";
  const absl::StatusOr<HostPort> parsed = ParseHostPort(address);
  in_addr ipv4;
  const bool is_name = parsed.ok() && parsed->port != 0 && !absl::StrContains(parsed->host, ':') &&
                       inet_pton(AF_INET, parsed->host.c_str(), &ipv4) != 1 && !IsLoopbackHost(parsed->host);
  return is_name ? parsed->host : "";
}

}  // namespace

absl::StatusOr<Endpoints> ReadEndpoints(absl::string_view text) {
  Endpoints endpoints;
  if (absl::ConsumePrefix(&text, kScheme)) {
    endpoints.is_file = true;
    ASSIGN_OR_RETURN(endpoints.addresses, ReadFile(std::string(text)));
  } else {
    endpoints.addresses = absl::StrSplit(text, ',');
  }
  RETURN_IF_ERROR(CheckAll(endpoints.addresses));
  return endpoints;
}

std::vector<std::string> ResolveByDns(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return {};
  const absl::Cleanup release = [found] { freeaddrinfo(found); };
  std::vector<std::string> ipv4, ipv6;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) != 0) continue;
    if (one->ai_family == AF_INET) ipv4.emplace_back(text);
    if (one->ai_family == AF_INET6) ipv6.push_back(absl::StrCat("[", text, "]"));
  }
  return ipv4.empty() ? ipv6 : ipv4;
}

absl::Status SpreadNames(bool secure, const ResolveHost& resolve, Endpoints* endpoints) {
  const bool is_single = endpoints->addresses.size() == 1;
  if (endpoints->is_file || (secure && is_single)) return absl::OkStatus();
  std::vector<std::string> spread;
  for (const std::string& address : endpoints->addresses) {
    const std::string host = NameIn(address);
    const std::vector<std::string> hosts = host.empty() ? std::vector<std::string>() : resolve(host);
    // The resolver can return an address more than once.
    const std::set<std::string> unique(hosts.begin(), hosts.end());
    if (unique.size() < 2) {
      spread.push_back(address);
      continue;
    }
    if (secure) {
      return absl::InvalidArgumentError(absl::StrCat(host, " has ", unique.size(),
                                                     " addresses, which no certificate names; list the servers by "
                                                     "names of their own"));
    }
    const std::string port = address.substr(host.size());
    for (const std::string& one : unique) spread.push_back(absl::StrCat(one, port));
  }
  endpoints->addresses = std::move(spread);
  return CheckAll(endpoints->addresses);
}

}  // namespace hookline::client
