#include "client/cpp/proxy.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/address.h"

namespace hookline::client {
namespace {

// gRPC reads these in this order; the first that is set counts.
constexpr const char* kProxyVariables[] = {"grpc_proxy", "https_proxy", "http_proxy"};
constexpr const char* kNoProxyVariables[] = {"no_grpc_proxy", "no_proxy"};

// Returns the first variable that is set, and its value; both are empty if none is set.
template <size_t kCount>
std::pair<std::string, std::string> FirstSet(const char* const (&variables)[kCount]) {
  for (const char* variable : variables) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return {variable, value};
  }
  return {};
}

std::string WithoutPassword(const std::string& url) {
  const size_t begin = url.find("//");
  const size_t at = url.find('@');
  if (begin == std::string::npos || at == std::string::npos || at < begin) return url;
  return absl::StrCat(url.substr(0, begin + 2), url.substr(at + 1));
}

}  // namespace

std::string ProxyOnTheWay(absl::string_view address) {
  const std::string host = ServerHostPort(address).host;
  if (host.empty() || IsLoopbackHost(host)) return "";
  const auto [variable, proxy] = FirstSet(kProxyVariables);
  if (variable.empty()) return "";
  for (absl::string_view exempt : absl::StrSplit(FirstSet(kNoProxyVariables).second, ',')) {
    exempt = absl::StripAsciiWhitespace(exempt);
    if (!exempt.empty() && absl::EndsWith(host, exempt)) return "";
  }
  return absl::StrCat("through the proxy ", WithoutPassword(proxy), ", which ", variable, " names; set no_proxy=", host,
                      " to bypass it");
}

absl::Status NameProxy(const absl::Status& status, const std::string& proxy) {
  if (!absl::IsUnavailable(status) || proxy.empty() || absl::StrContains(status.message(), proxy)) return status;
  return absl::UnavailableError(absl::StrCat(status.message(), " (", proxy, ")"));
}

}  // namespace hookline::client
