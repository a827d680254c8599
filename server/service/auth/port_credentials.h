// Credentials of the ports that connections are handed to: TLS or none.
//
// gRPC's C++ interface cannot replace certificates, so this uses its C interface. Never add a metadata processor:
// see auth/caller.h.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_

#include <memory>

#include "grpcpp/security/server_credentials.h"
#include "server/service/auth/certificates.h"

namespace hookline {

// Returns the credentials of a port. `certificates` are null for a port without TLS, and must outlive gRPC's server.
std::shared_ptr<grpc::ServerCredentials> PortCredentials(Certificates* certificates);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_PORT_CREDENTIALS_H_
