#include "server/service/auth/caller.h"

#include <memory>
#include <string>

#include "grpc/grpc_security_constants.h"
#include "server/service/peer_address.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

constexpr char kAuthorization[] = "authorization";

}  // namespace

absl::StatusOr<AuthClient> CallerCheck::Authorize(const grpc::CallbackServerContext& context,
                                                  absl::string_view method) const {
  CallFacts call;
  call.method = method;
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
  absl::StatusOr<AuthClient> client = authenticator_->Authorize(call);
  if (!client.ok()) spdlog::debug("{} is refused: {}", std::string(method), client.status().ToString());
  return client;
}

}  // namespace hookline
