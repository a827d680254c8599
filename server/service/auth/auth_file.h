// The file of clients: their names, the credentials that identify them, and what they may do.
//
//   {"clients": [{"name": "alice", "token_sha256": "<64 hex digits>", "roles": ["read", "capture"], "weight": 1,
//                 "quotas": {"captures": 4}},
//                {"name": "ci", "san": "spiffe://lab/ci", "roles": ["read"]},
//                {"name": "local", "uid": 1000, "roles": ["admin"]}]}
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_AUTH_FILE_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_AUTH_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/sha256.h"
#include "server/capture/client_identity.h"
#include "server/service/auth/roles.h"

namespace hookline {

struct AuthClient {
  ClientIdentity identity;
  RoleSet roles;
  // The client's credentials. Any one of them identifies the client, and at least one is set.
  std::optional<Sha256> token;
  std::string san;  // a URI or DNS name of its certificate; empty: none
  std::optional<int64_t> uid;
};

// The clients of a file. Immutable.
class AuthFile {
 public:
  // Parses the file's text. INVALID_ARGUMENT names the client, the field and the value that is wrong: unknown fields,
  // fields given twice and credentials of two clients are refused too.
  static absl::StatusOr<AuthFile> Parse(absl::string_view text);
  // Reads and parses; errors name the path.
  static absl::StatusOr<AuthFile> Read(const std::string& path);

  // Return null if no client has the credential. The time that FindByToken takes does not depend on how much of the
  // token is right.
  const AuthClient* FindByToken(absl::string_view token) const;
  const AuthClient* FindBySan(absl::string_view san) const;
  const AuthClient* FindByUid(int64_t uid) const;

  const std::vector<AuthClient>& clients() const { return clients_; }

 private:
  std::vector<AuthClient> clients_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_AUTH_FILE_H_
