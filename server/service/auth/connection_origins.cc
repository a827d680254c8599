#include "server/service/auth/connection_origins.h"

#include <algorithm>

#include "server/base/socket_peer.h"

namespace hookline {
namespace {

// At most this many users of this machine can be connected at a time by TCP, and as many by unix sockets. Each slot
// that has had a user costs some 40 KiB.
constexpr int kUserSlots = 16;
constexpr int kRemoteSlot = 0;
constexpr int kUnknownLoopbackSlot = 1;

}  // namespace

ConnectionOrigins::ConnectionOrigins() {
  slots_.push_back({OriginKind::kRemote, /*has_user=*/false, std::nullopt, {}});
  slots_.push_back({OriginKind::kLoopback, /*has_user=*/false, std::nullopt, {}});
  for (OriginKind kind : {OriginKind::kLoopback, OriginKind::kUnix}) {
    for (int i = 0; i < kUserSlots; ++i) slots_.push_back({kind, /*has_user=*/true, std::nullopt, {}});
  }
}

Origin ConnectionOrigins::origin(int slot) const {
  const Slot& found = slots_[static_cast<size_t>(slot)];
  return {found.kind, found.uid};
}

std::optional<int> ConnectionOrigins::Assign(int connection, const sockaddr_storage& peer) {
  const bool is_unix = peer.ss_family == AF_UNIX;
  if (!is_unix && !IsLoopbackAddress(peer)) return kRemoteSlot;
  const std::optional<uint32_t> uid = is_unix ? UnixPeerUid(connection) : LoopbackPeerUid(connection);
  std::optional<int> slot;
  if (uid.has_value()) slot = SlotOfUser(is_unix ? OriginKind::kUnix : OriginKind::kLoopback, *uid);
  if (!slot.has_value()) return is_unix ? std::nullopt : std::optional<int>(kUnknownLoopbackSlot);
  auto& connections = slots_[static_cast<size_t>(*slot)].connections;
  // Closed connections are forgotten here, so that the list is no longer than the connections that are open.
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
