// Identifies the client that calls, and checks that it has the role that the method needs.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Authenticator> authenticator, Authenticator::Create("clients.json"));
//   ASSIGN_OR_RETURN(const AuthClient client, authenticator->Identify(facts));
//   RETURN_IF_ERROR(CheckMethodRole(client, "/hookline.v1.ModelService/ListModels"));
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_AUTHENTICATOR_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_AUTHENTICATOR_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/service/auth/auth_file.h"
#include "server/service/auth/roles.h"

namespace hookline {

// The facts about a call that are known before its request is parsed.
struct CallFacts {
  std::vector<absl::string_view> authorization;  // values of the metadata `authorization`
  std::vector<absl::string_view> sans;           // URI and DNS names of the client's certificate, which was verified
  std::optional<int64_t> unix_uid;               // of the user at a unix socket
  bool is_private = false;                       // cannot be read on the way: TLS, loopback or a unix socket
  std::string address;                           // the peer's, without a port
};

// Thread-safe.
class Authenticator {
 public:
  // `path` is that of an auth file. If it is empty, there are no identities: the peer's address is the client, and may
  // do everything. Errors of AuthFile::Read.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(const std::string& path);

  bool has_identities() const { return !path_.empty(); }

  // Reads the file again. If it is wrong, returns the error, and the previous one stays in force.
  absl::Status Reload();

  // Returns the calling client. UNAUTHENTICATED says what is missing, but never which clients there are.
  absl::StatusOr<AuthClient> Identify(const CallFacts& call) const;

 private:
  explicit Authenticator(std::string path) : path_(std::move(path)) {}
  std::shared_ptr<const AuthFile> file() const;

  const std::string path_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<const AuthFile> file_ ABSL_GUARDED_BY(mutex_);
};

// Returns PERMISSION_DENIED unless the client has the role that `method` (/package.Service/Method) needs, and INTERNAL
// if the method has no role.
absl::Status CheckMethodRole(const AuthClient& client, absl::string_view method);

// Returns PERMISSION_DENIED unless the client has the role. `what` is the thing that needs it, for the message.
absl::Status RequireRole(const AuthClient& client, Role role, absl::string_view what);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_AUTHENTICATOR_H_
