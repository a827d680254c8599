#include "server/service/auth/authenticator.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// `hookline token` makes 47 characters; hashing a much longer token would be wasted work.
constexpr size_t kMaxTokenBytes = 1024;

absl::StatusOr<absl::string_view> BearerToken(const CallFacts& call) {
  if (call.authorization.size() > 1) {
    return absl::UnauthenticatedError("authorization: is given more than once; send one token");
  }
  absl::string_view token = call.authorization.front();
  if (token.size() < 7 || !absl::EqualsIgnoreCase(token.substr(0, 7), "Bearer ")) {
    return absl::UnauthenticatedError("authorization: only `Bearer TOKEN` is known");
  }
  token = absl::StripAsciiWhitespace(token.substr(7));
  if (token.empty() || token.size() > kMaxTokenBytes) {
    return absl::UnauthenticatedError(absl::StrCat("authorization: a token has 1 to ", kMaxTokenBytes, " bytes"));
  }
  return token;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(const std::string& path) {
  std::unique_ptr<Authenticator> authenticator(new Authenticator(path));
  if (!path.empty()) {
    ASSIGN_OR_RETURN(AuthFile file, AuthFile::Read(path));
    absl::MutexLock lock(&authenticator->mutex_);
    authenticator->file_ = std::make_shared<const AuthFile>(std::move(file));
  }
  return authenticator;
}

absl::Status Authenticator::Reload() {
  if (path_.empty()) return absl::OkStatus();
  absl::StatusOr<AuthFile> file = AuthFile::Read(path_);
  if (!file.ok()) {
    spdlog::error("the new auth file is not used; the previous one stays in force: {}",
                  std::string(file.status().message()));
    return file.status();
  }
  const size_t clients = file->clients().size();
  {
    absl::MutexLock lock(&mutex_);
    file_ = std::make_shared<const AuthFile>(*std::move(file));
  }
  // This is logged after the change, so that a reader of the line can rely on it.
  spdlog::info("the auth file was read again: {} clients", clients);
  return absl::OkStatus();
}

std::shared_ptr<const AuthFile> Authenticator::file() const {
  absl::MutexLock lock(&mutex_);
  return file_;
}

absl::StatusOr<AuthClient> Authenticator::Identify(const CallFacts& call) const {
  const std::shared_ptr<const AuthFile> file = this->file();
  if (file == nullptr) {
    AuthClient anybody;
    anybody.identity = ClientIdentity(call.address);
    anybody.roles = RoleSet::All();
    return anybody;
  }
  // A token that is sent must be valid, even if the certificate or the user would identify its sender.
  if (!call.authorization.empty()) {
    if (!call.is_private) {
      return absl::UnauthenticatedError(
          "authorization: tokens are refused on a connection that others can read; connect by TLS, and use a new "
          "token, since this one was sent in clear text");
    }
    ASSIGN_OR_RETURN(const absl::string_view token, BearerToken(call));
    const AuthClient* const client = file->FindByToken(token);
    if (client == nullptr) return absl::UnauthenticatedError("authorization: this token is not valid");
    return *client;
  }
  for (absl::string_view san : call.sans) {
    if (const AuthClient* client = file->FindBySan(san); client != nullptr) return *client;
  }
  if (call.unix_uid.has_value()) {
    if (const AuthClient* client = file->FindByUid(*call.unix_uid); client != nullptr) return *client;
  }
  return absl::UnauthenticatedError(
      "no credential: send `authorization: Bearer TOKEN`, or connect with a certificate or by a unix socket as a user "
      "that the server knows");
}

absl::Status CheckMethodRole(const AuthClient& client, absl::string_view method) {
  const MethodRole* const needed = FindMethodRole(method);
  if (needed == nullptr || !needed->role.has_value()) {
    return absl::InternalError(absl::StrCat(method, " has no role in server/service/auth/roles.cc"));
  }
  return RequireRole(client, *needed->role, method);
}

absl::Status RequireRole(const AuthClient& client, Role role, absl::string_view what) {
  if (client.roles.Has(role)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(what, " needs the role `", RoleName(role), "`, which ", client.identity.name, " does not have"));
}

}  // namespace hookline
