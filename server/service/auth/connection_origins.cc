#include "server/service/auth/connection_origins.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/socket_peer.h"

namespace hookline {
namespace {

// Users of one machine who are connected at the same time, by each of TCP and unix sockets. Each slot costs some ten
// KiB in gRPC.
constexpr int kUserSlots = 16;
constexpr int kRemoteSlot = 0;
constexpr int kUnknownLoopbackSlot = 1;

constexpr absl::string_view KindName(OriginKind kind) {
  switch (kind) {
    case OriginKind::kRemote:
      return "remote";
    case OriginKind::kLoopback:
      return "loopback";
    case OriginKind::kUnix:
      return "unix";
  }
  return "";
}

}  // namespace

std::string Origin::ToText() const {
  return uid.has_value() ? absl::StrCat(KindName(kind), " ", *uid) : std::string(KindName(kind));
}

std::optional<Origin> Origin::FromText(absl::string_view text) {
  for (OriginKind kind : {OriginKind::kRemote, OriginKind::kLoopback, OriginKind::kUnix}) {
    absl::string_view rest = text;
    if (!absl::ConsumePrefix(&rest, KindName(kind))) continue;
    Origin origin{kind, std::nullopt};
    uint32_t uid;
    if (absl::ConsumePrefix(&rest, " ") && absl::SimpleAtoi(rest, &uid)) origin.uid = uid;
    return origin;
  }
  return std::nullopt;
}

ConnectionOrigins::ConnectionOrigins() {
  slots_.push_back({OriginKind::kRemote, /*has_user=*/false, std::nullopt, {}});
  slots_.push_back({OriginKind::kLoopback, /*has_user=*/false, std::nullopt, {}});
  for (OriginKind kind : {OriginKind::kLoopback, OriginKind::kUnix}) {
    for (int i = 0; i < kUserSlots; ++i) slots_.push_back({kind, /*has_user=*/true, std::nullopt, {}});
  }
}

Origin ConnectionOrigins::origin(int slot) const {
  absl::MutexLock lock(&mutex_);
  const Slot& found = slots_[static_cast<size_t>(slot)];
  return {found.kind, found.uid};
}

std::optional<int> ConnectionOrigins::Assign(int connection, const sockaddr_storage& peer) {
  const bool is_unix = peer.ss_family == AF_UNIX;
  if (!is_unix && !IsLoopbackAddress(peer)) return kRemoteSlot;
  const std::optional<uint32_t> uid = is_unix ? UnixPeerUid(connection) : LoopbackPeerUid(connection);
  absl::MutexLock lock(&mutex_);
  std::optional<int> slot;
  if (uid.has_value()) slot = SlotOfUser(is_unix ? OriginKind::kUnix : OriginKind::kLoopback, *uid);
  if (!slot.has_value()) return is_unix ? std::nullopt : std::optional<int>(kUnknownLoopbackSlot);
  auto& connections = slots_[static_cast<size_t>(*slot)].connections;
  // Those that are closed are forgotten here, so that the list is no longer than the connections that are open.
  connections.erase(std::remove_if(connections.begin(), connections.end(),
                                   [](const auto& open) { return SocketCookie(open.first) != open.second; }),
                    connections.end());
  connections.emplace_back(connection, SocketCookie(connection));
  return slot;
}

std::optional<int> ConnectionOrigins::SlotOfUser(OriginKind kind, uint32_t uid) {
  std::optional<int> free;
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.kind != kind || !slot.has_user) continue;
    if (slot.uid == uid) return static_cast<int>(i);
    const bool is_open = std::any_of(slot.connections.begin(), slot.connections.end(), [](const auto& connection) {
      return SocketCookie(connection.first) == connection.second;
    });
    if (!is_open && !free.has_value()) free = static_cast<int>(i);
  }
  if (free.has_value()) {
    slots_[static_cast<size_t>(*free)].uid = uid;
    slots_[static_cast<size_t>(*free)].connections.clear();
  }
  return free;
}

}  // namespace hookline
