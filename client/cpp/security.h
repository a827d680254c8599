// The settings by which a client speaks to a server: TLS, and the token that says who it is.
#ifndef HOOKLINE_CLIENT_CPP_SECURITY_H_
#define HOOKLINE_CLIENT_CPP_SECURITY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"

namespace hookline::client {

// PEM files. A path that is given turns TLS on.
struct TlsOptions {
  bool enabled = false;
  std::string ca_path;           // of the authority of the server's certificate; empty: those of this machine
  std::string certificate_path;  // to show to the server; empty: none
  std::string key_path;          // of that certificate

  bool is_on() const { return enabled || !ca_path.empty() || !certificate_path.empty() || !key_path.empty(); }
};

// Takes `grpcs://` off an address, which turns TLS on, or `grpc://`, which contradicts TLS.
absl::StatusOr<std::string> TakeScheme(absl::string_view address, TlsOptions* tls);

// Credentials of a channel. INVALID_ARGUMENT names the option that is wrong.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(const TlsOptions& tls);

// INVALID_ARGUMENT unless `token` may be sent to `address`, which has no scheme: it has the characters of a token, and
// nobody on the way reads it.
absl::Status CheckToken(absl::string_view token, absl::string_view address, const TlsOptions& tls);

// Sends the token with every call of a channel. None for an empty token.
std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> TokenInterceptors(
    const std::string& token);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_SECURITY_H_
