// Credentials of the ports that connections are handed to: TLS or none.
//
// gRPC's C++ interface has no certificates that change; its C interface, which this uses, has. There is no processor of
// metadata, and none may be added: see auth/caller.h.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_

#include <memory>

#include "grpcpp/security/server_credentials.h"
#include "server/service/auth/certificates.h"

namespace hookline {

// `certificates`: null for a port without TLS. They must outlive gRPC's server.
std::shared_ptr<grpc::ServerCredentials> PortCredentials(Certificates* certificates);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_
