// Credentials of the ports that connections are handed to: TLS or none, and the check of every call's client and role
// before its handler runs.
//
// gRPC's C++ interface has neither certificates that change nor a check of calls without TLS; its C interface, which
// this uses, has both.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_context.h"
#include "server/service/auth/authenticator.h"
#include "server/service/auth/certificates.h"
#include "server/service/auth/connection_origins.h"

namespace hookline {

// Credentials of the port of `slot`. `certificates`: null for a port without TLS. All must outlive gRPC's server.
std::shared_ptr<grpc::ServerCredentials> PortCredentials(const Authenticator* authenticator,
                                                         const ConnectionOrigins* origins, int slot,
                                                         Certificates* certificates);

// The client of a call whose role was checked. UNAUTHENTICATED: the auth file has changed since then. In servers
// without PortCredentials (tests) every address is a client.
absl::StatusOr<AuthClient> ClientOf(const Authenticator* authenticator, const grpc::CallbackServerContext& context);

// Where the call comes from; none in servers without PortCredentials.
std::optional<Origin> OriginOf(const grpc::CallbackServerContext& context);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_
