#include "client/cpp/security.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/address.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

absl::Status ReadFile(absl::string_view option, const std::string& path, std::string* text) {
  if (path.empty()) return absl::OkStatus();
  std::ifstream file(path, std::ios::binary);
  text->assign(std::istreambuf_iterator<char>(file), {});
  if (file.bad() || text->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(option, ": ", path, " cannot be read, or is empty"));
  }
  return absl::OkStatus();
}

class TokenInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const std::string* authorization) : authorization_(authorization) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization", *authorization_);
    }
    methods->Proceed();
  }

 private:
  const std::string* const authorization_;
};

class TokenInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(const std::string& token) : authorization_(absl::StrCat("Bearer ", token)) {}

  // The channel, and with it this factory, outlives its calls.
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo* /*info*/) override {
    return new TokenInterceptor(&authorization_);
  }

 private:
  const std::string authorization_;
};

bool StaysOnThisMachine(absl::string_view address) {
  return absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:") ||
         IsLoopbackHost(ServerHostPort(address).host);
}

}  // namespace

absl::StatusOr<std::string> TakeScheme(absl::string_view address, TlsOptions* tls) {
  if (absl::ConsumePrefix(&address, "grpcs://")) {
    tls->enabled = true;
  } else if (absl::ConsumePrefix(&address, "grpc://") && tls->is_on()) {
    return absl::InvalidArgumentError("address: begins with grpc://, which has no TLS, but TLS is requested");
  }
  return std::string(address);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(const TlsOptions& tls) {
  if (!tls.is_on()) return grpc::InsecureChannelCredentials();
  if (tls.certificate_path.empty() != tls.key_path.empty()) {
    return absl::InvalidArgumentError("tls: a certificate and its key must be given together or not at all");
  }
  grpc::SslCredentialsOptions options;
  RETURN_IF_ERROR(ReadFile("tls-ca", tls.ca_path, &options.pem_root_certs));
  RETURN_IF_ERROR(ReadFile("tls-cert", tls.certificate_path, &options.pem_cert_chain));
  RETURN_IF_ERROR(ReadFile("tls-key", tls.key_path, &options.pem_private_key));
  return grpc::SslCredentials(options);
}

absl::Status CheckToken(absl::string_view token, absl::string_view address, const TlsOptions& tls) {
  if (token.empty()) return absl::OkStatus();
  if (!std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c < 0x7f; })) {
    return absl::InvalidArgumentError("token: holds spaces or unprintable characters");
  }
  if (tls.is_on() || StaysOnThisMachine(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("token: others could read it on the way to ", address, "; connect to grpcs://", address, " (TLS)"));
}

std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> TokenInterceptors(
    const std::string& token) {
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!token.empty()) interceptors.push_back(std::make_unique<TokenInterceptorFactory>(token));
  return interceptors;
}

}  // namespace hookline::client
