// One table of every method and the role that it needs.
//
// A new method gets its line in roles.cc; a server that registers a method without one does not start.
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_ROLES_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_ROLES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline {

enum class Role : uint8_t {
  kRead,      // models, datasets, lists, estimates, reading recordings
  kCapture,   // captures
  kRecord,    // writing recordings
  kEvaluate,  // scores and interventions
  kAdmin,     // what belongs to others; has every other role too
};

// Returns the name in auth files: `read`, `capture`, `record`, `evaluate`, `admin`.
absl::string_view RoleName(Role role);
std::optional<Role> RoleOf(absl::string_view name);
// Returns all names, `read, capture, ...`, for messages.
std::string RoleNames();

class RoleSet {
 public:
  static RoleSet All();
  void Add(Role role) { bits_ = static_cast<uint8_t>(bits_ | Bit(role)); }
  // kAdmin has every role.
  bool Has(Role role) const { return (bits_ & (Bit(role) | Bit(Role::kAdmin))) != 0; }

 private:
  static uint8_t Bit(Role role) { return static_cast<uint8_t>(1 << static_cast<int>(role)); }
  uint8_t bits_ = 0;
};

struct MethodRole {
  absl::string_view method;  // as HTTP/2 names it: /package.Service/Method
  std::optional<Role> role;  // none: open to anyone who can connect
};

// Returns null for a method that is not in the table.
const MethodRole* FindMethodRole(absl::string_view method);

// Returns INTERNAL, naming the method, unless each method of the named services has a line in the table. The services
// must be linked into the program.
absl::Status CheckEveryMethodHasARole(const std::vector<std::string>& services);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_ROLES_H_
