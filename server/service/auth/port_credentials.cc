#include "server/service/auth/port_credentials.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"
#include "grpc/grpc_security_constants.h"
#include "server/service/peer_address.h"
#include "server/service/status_mapping.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

constexpr char kAuthorization[] = "authorization";
constexpr char kMethod[] = ":path";
// A property of gRPC's connections, beside those of the client's certificate. Its value is Origin::ToText.
constexpr char kOrigin[] = "hookline-origin";
constexpr char kTls[] = "ssl";  // gRPC's value of GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME

absl::string_view ViewOf(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

std::vector<absl::string_view> PropertiesOf(const grpc_auth_context* context, const char* name) {
  std::vector<absl::string_view> values;
  grpc_auth_property_iterator iterator = grpc_auth_context_find_properties_by_name(context, name);
  while (const grpc_auth_property* property = grpc_auth_property_iterator_next(&iterator)) {
    values.emplace_back(property->value, property->value_length);
  }
  return values;
}

// Checks the calls of one port.
class CallCheck {
 public:
  CallCheck(const Authenticator* authenticator, const ConnectionOrigins* origins, int slot)
      : authenticator_(authenticator), origins_(origins), slot_(slot) {}

  absl::Status Check(grpc_auth_context* context, const grpc_metadata* metadata, size_t count) {
    const Origin origin = RememberOrigin(context);
    CallFacts call;
    for (size_t i = 0; i < count; ++i) {
      const absl::string_view key = ViewOf(metadata[i].key);
      if (key == kAuthorization) call.authorization.push_back(ViewOf(metadata[i].value));
      if (key == kMethod) call.method = ViewOf(metadata[i].value);
    }
    const std::vector<absl::string_view> security = PropertiesOf(context, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
    call.is_private = origin.kind != OriginKind::kRemote || (!security.empty() && security[0] == kTls);
    for (const char* name : {GRPC_PEER_URI_PROPERTY_NAME, GRPC_PEER_DNS_PROPERTY_NAME}) {
      for (absl::string_view san : PropertiesOf(context, name)) call.sans.push_back(san);
    }
    if (origin.kind == OriginKind::kUnix) call.unix_uid = origin.uid;
    const absl::StatusOr<AuthClient> client = authenticator_->Authorize(call);
    if (!client.ok()) spdlog::debug("{} is refused: {}", std::string(call.method), client.status().ToString());
    return client.status();
  }

 private:
  // The connection's calls share the context; the first one of them writes the property, before any handler reads it.
  Origin RememberOrigin(grpc_auth_context* context) {
    static absl::Mutex mutex(absl::kConstInit);
    absl::MutexLock lock(&mutex);
    const std::vector<absl::string_view> known = PropertiesOf(context, kOrigin);
    if (!known.empty()) return Origin::FromText(known[0]).value_or(Origin{});
    const Origin origin = origins_->origin(slot_);
    grpc_auth_context_add_cstring_property(context, kOrigin, origin.ToText().c_str());
    return origin;
  }

  const Authenticator* const authenticator_;
  const ConnectionOrigins* const origins_;
  const int slot_;
};

grpc_auth_metadata_processor ProcessorOf(std::unique_ptr<CallCheck> check) {
  grpc_auth_metadata_processor processor;
  processor.state = check.release();
  processor.destroy = [](void* state) { delete static_cast<CallCheck*>(state); };
  processor.process = [](void* state, grpc_auth_context* context, const grpc_metadata* metadata, size_t count,
                         grpc_process_auth_metadata_done_cb done, void* user_data) {
    const absl::Status status = static_cast<CallCheck*>(state)->Check(context, metadata, count);
    const grpc::Status answer = ToGrpc(status);
    done(user_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(answer.error_code()),
         answer.error_message().empty() ? nullptr : answer.error_message().c_str());
  };
  return processor;
}

// Gives gRPC the certificates of one port as they change.
class CertificateSource {
 public:
  explicit CertificateSource(Certificates* certificates) : certificates_(certificates) {}

  static grpc_ssl_certificate_config_reload_status Fetch(void* user_data, grpc_ssl_server_certificate_config** config) {
    return static_cast<CertificateSource*>(user_data)->Next(config);
  }

 private:
  // gRPC calls it at each handshake, one at a time.
  grpc_ssl_certificate_config_reload_status Next(grpc_ssl_server_certificate_config** config) {
    const Certificates::Version now = certificates_->current();
    if (now.number == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {now.files->key.c_str(), now.files->certificate.c_str()};
    // gRPC insists on an authority here, also where it asks clients for no certificate; then it never uses it.
    const std::string& authority = now.files->client_ca.empty() ? now.files->certificate : now.files->client_ca;
    *config = grpc_ssl_server_certificate_config_create(authority.c_str(), &pair, 1);
    given_ = now.number;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  Certificates* const certificates_;
  int64_t given_ = 0;
};

class PortCredentialsImpl final : public grpc::ServerCredentials {
 public:
  PortCredentialsImpl(std::unique_ptr<CallCheck> check, Certificates* certificates) {
    if (certificates == nullptr) {
      credentials_ = grpc_insecure_server_credentials_create();
    } else {
      source_ = std::make_unique<CertificateSource>(certificates);
      grpc_ssl_server_credentials_options* const options =
          grpc_ssl_server_credentials_create_options_using_config_fetcher(
              certificates->asks_clients() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                           : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
              CertificateSource::Fetch, source_.get());
      credentials_ = grpc_ssl_server_credentials_create_with_options(options);  // takes the options
    }
    grpc_server_credentials_set_auth_metadata_processor(credentials_, ProcessorOf(std::move(check)));
  }
  ~PortCredentialsImpl() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>& /*processor*/) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  std::unique_ptr<CertificateSource> source_;
  grpc_server_credentials* credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> PortCredentials(const Authenticator* authenticator,
                                                         const ConnectionOrigins* origins, int slot,
                                                         Certificates* certificates) {
  return std::make_shared<PortCredentialsImpl>(std::make_unique<CallCheck>(authenticator, origins, slot), certificates);
}

absl::StatusOr<AuthClient> ClientOf(const Authenticator* authenticator, const grpc::CallbackServerContext& context) {
  CallFacts call;
  call.address = PeerAddress(context.peer());
  call.is_private = true;  // or the call would not have come so far
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
  const std::optional<Origin> origin = OriginOf(context);
  if (origin.has_value() && origin->kind == OriginKind::kUnix) call.unix_uid = origin->uid;
  if (authenticator != nullptr) return authenticator->Identify(call);
  AuthClient anybody;
  anybody.identity = ClientIdentity(call.address);
  anybody.roles = RoleSet::All();
  return anybody;
}

std::optional<Origin> OriginOf(const grpc::CallbackServerContext& context) {
  for (const grpc::string_ref& text : context.auth_context()->FindPropertyValues(kOrigin)) {
    return Origin::FromText({text.data(), text.size()});
  }
  return std::nullopt;
}

}  // namespace hookline
