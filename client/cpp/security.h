// The settings with which a client talks to a server: TLS, and the token that says who the client is.
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
  std::string ca_path;           // the authority of the server's certificate; empty: those that this machine trusts
  std::string certificate_path;  // the certificate to show to the server; empty: none
  std::string key_path;          // the key of that certificate

  bool is_on() const { return enabled || !ca_path.empty() || !certificate_path.empty() || !key_path.empty(); }
};

// Removes `grpcs://` from an address and turns TLS on, or removes `grpc://`, which is INVALID_ARGUMENT with TLS.
absl::StatusOr<std::string> TakeScheme(absl::string_view address, TlsOptions* tls);

// Returns the credentials of a channel. INVALID_ARGUMENT names the option that is wrong.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(const TlsOptions& tls);

// Returns INVALID_ARGUMENT unless `token` may be sent to `address`, which has no scheme: the token must have only
// printable characters, and nobody on the way may be able to read it.
absl::Status CheckToken(absl::string_view token, absl::string_view address, const TlsOptions& tls);

// Returns interceptors that send the token with every call of a channel; none for an empty token.
std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> TokenInterceptors(
    const std::string& token);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_SECURITY_H_
