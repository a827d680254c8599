#include "server/service/auth/port_credentials.h"

#include <cstdint>
#include <string>

#include "grpc/grpc.h"
#include "grpc/grpc_security.h"
#include "grpc/grpc_security_constants.h"

namespace hookline {
namespace {

// Gives gRPC the certificates of one port as they change.
class CertificateSource {
 public:
  explicit CertificateSource(Certificates* certificates) : certificates_(certificates) {}

  static grpc_ssl_certificate_config_reload_status Fetch(void* user_data, grpc_ssl_server_certificate_config** config) {
    return static_cast<CertificateSource*>(user_data)->Next(config);
  }

 private:
  // gRPC calls this at each handshake, one at a time.
  grpc_ssl_certificate_config_reload_status Next(grpc_ssl_server_certificate_config** config) {
    const Certificates::Version now = certificates_->current();
    if (now.number == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {now.files->key.c_str(), now.files->certificate.c_str()};
    // gRPC requires an authority here even if clients need no certificate; it is never used then.
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
  explicit PortCredentialsImpl(Certificates* certificates) {
    if (certificates == nullptr) {
      credentials_ = grpc_insecure_server_credentials_create();
    } else {
      source_ = std::make_unique<CertificateSource>(certificates);
      grpc_ssl_server_credentials_options* const options =
          grpc_ssl_server_credentials_create_options_using_config_fetcher(
              certificates->asks_clients() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                           : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
              CertificateSource::Fetch, source_.get());
      credentials_ = grpc_ssl_server_credentials_create_with_options(options);  // takes ownership of the options
    }
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

std::shared_ptr<grpc::ServerCredentials> PortCredentials(Certificates* certificates) {
  return std::make_shared<PortCredentialsImpl>(certificates);
}

}  // namespace hookline
