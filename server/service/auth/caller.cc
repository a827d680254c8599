#include "server/service/auth/caller.h"

#include <memory>
#include <string>

#include "grpc/grpc_security_constants.h"
#include "server/base/status.h"
#include "server/service/peer_address.h"

namespace hookline {
namespace {

constexpr char kAuthorization[] = "authorization";

}  // namespace

absl::StatusOr<AuthClient> CallerCheck::Authorize(const grpc::CallbackServerContext& context, absl::string_view method,
                                                  CallRecord* record) const {
  CallFacts call;
  call.address = PeerAddress(context.peer());
  call.is_private = origin_.kind != OriginKind::kRemote || transport_ == Transport::kTls;
  const auto tokens = context.client_metadata().equal_range(kAuthorization);
  for (auto token = tokens.first; token != tokens.second; ++token) {
    call.authorization.emplace_back(token->second.data(), token->second.size());
  }
  const std::shared_ptr<const grpc::AuthContext> properties = context.auth_context();
  for (const char* name : {GRPC_PEER_URI_PROPERTY_NAME, GRPC_PEER_DNS_PROPERTY_NAME}) {
    for (const grpc::string_ref& san : properties->FindPropertyValues(name)) {
      call.sans.emplace_back(san.data(), san.size());
    }
  }
  if (origin_.kind == OriginKind::kUnix) call.unix_uid = origin_.uid;
  *record = CallRecord(metrics_, method, call.address);
  ASSIGN_OR_RETURN(AuthClient client, authenticator_->Identify(call));
  record->SetClient(client.identity);
  RETURN_IF_ERROR(CheckMethodRole(client, method));
  return client;
}

}  // namespace hookline
