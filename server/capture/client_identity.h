// The client on whose behalf something runs: one that the auth file names, or a peer's address.
#ifndef HOOKLINE_SERVER_CAPTURE_CLIENT_IDENTITY_H_
#define HOOKLINE_SERVER_CAPTURE_CLIENT_IDENTITY_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace hookline {

// The limits of what one client may have at a time. Absent: the server's default.
struct ClientQuotas {
  std::optional<int64_t> captures;           // that run or wait
  std::optional<int64_t> waiting;            // captures that wait to run
  std::optional<int64_t> slabs;              // of all its captures' windows
  std::optional<int64_t> tokens_per_second;  // that enter forward passes, on average
  std::optional<int64_t> burst_tokens;       // that may enter at once after a pause
  std::optional<int64_t> rows;               // of each hook point in one capture; larger budgets are refused
  std::optional<int64_t> recordings;         // on the disk
  std::optional<int64_t> recording_bytes;    // of all its recordings
  std::optional<int64_t> feeds;              // captures that are members of feeds
};

struct ClientIdentity {
  ClientIdentity() = default;
  // A client with the server's default quotas that may do everything.
  ClientIdentity(absl::string_view client_name) : name(client_name) {}   // NOLINT(google-explicit-constructor)
  ClientIdentity(const char* client_name) : name(client_name) {}         // NOLINT(google-explicit-constructor)
  ClientIdentity(const std::string& client_name) : name(client_name) {}  // NOLINT(google-explicit-constructor)

  std::string name;
  // Its share of the device is its weight over the weights of all clients with work.
  int64_t weight = 1;
  ClientQuotas quotas;
  // It may list, stop and delete what belongs to others, and read as much as it likes.
  bool is_admin = true;
  // The auth file names it; otherwise the name is an address, and what it creates belongs to nobody.
  bool is_authenticated = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_CLIENT_IDENTITY_H_
