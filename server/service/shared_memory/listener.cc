#include "server/service/shared_memory/listener.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/base/descriptor_limit.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

constexpr char kSharedMemoryMetadata[] = "hookline-shared-memory";
constexpr char kMagic[] = "HKLNSHM1";
constexpr size_t kMagicBytes = 8;
constexpr size_t kOfferBytes = 24;
constexpr size_t kReleaseBytes = 8;
// Four times the calls that can run by default. A client beyond this limit waits, and then has its values sent. The
// limit is lower if connections, including those that are being closed, would take more than an eighth of the
// process's descriptors.
constexpr size_t kMaxConnections = 256;
constexpr int64_t kDescriptorsPerConnection = 8;
// The time between checks for room, or for a descriptor.
constexpr absl::Duration kRoomWait = absl::Milliseconds(100);
// The time that a connection has to send its offer. Hookline's clients wait for two seconds.
constexpr absl::Duration kOfferTime = absl::Seconds(5);
// The most descriptors that the kernel allows in one message (SCM_MAX_FD), so that none is cut off and forgotten.
constexpr size_t kMaxDescriptorsInMessage = 253;
// Room for more releases than there are pieces of the default size, about a megabyte.
constexpr size_t kReceiveBytes = 4096;

}  // namespace

std::shared_ptr<SharedMemory> TakeOffered(SharedMemoryListener* listener, const grpc::CallbackServerContext& context,
                                          std::optional<uint32_t> uid) {
  if (!uid.has_value()) return nullptr;
  const auto& metadata = context.client_metadata();
  const auto key = metadata.find(kSharedMemoryMetadata);
  if (key == metadata.end()) return nullptr;
  return listener->Take({key->second.data(), key->second.size()}, *uid);
}

void SharedMemoryListener::Listen(const std::vector<int>& ports, int64_t max_bytes) {
  max_bytes_ = max_bytes;
  if (max_bytes == 0) return;
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  stop_ = eventfd(0, EFD_CLOEXEC);
  if (epoll_ < 0 || stop_ < 0) return;
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = stop_;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, stop_, &event);
  for (int port : ports) ListenFor(port);
  if (!listeners_.empty()) thread_ = std::thread([this] { Run(); });
}

SharedMemoryListener::~SharedMemoryListener() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    (void)!write(stop_, &one, sizeof one);
    thread_.join();
  }
  while (!connections_.empty()) Close(connections_.begin()->first);
  for (int listener : listeners_) closer_.Close(listener);  // and the connections that wait to be accepted
  if (stop_ >= 0) close(stop_);
  if (epoll_ >= 0) close(epoll_);
}

void SharedMemoryListener::ListenFor(int port) {
  const std::string name = absl::StrCat("hookline-", port);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // An abstract name begins with a zero byte.
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const socklen_t length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = listener;
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(listener, SOMAXCONN) != 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, listener, &event) != 0) {
    spdlog::warn("no shared memory for clients on this machine at port {}: socket @{}: {}", port, name,
                 std::strerror(errno));
    if (listener >= 0) close(listener);
    return;
  }
  listeners_.push_back(listener);
}

std::shared_ptr<SharedMemory> SharedMemoryListener::Take(absl::string_view key, uint32_t uid) {
  absl::MutexLock lock(&mutex_);
  const auto found = offered_.find(key);
  if (found == offered_.end() || found->second.uid != uid) return nullptr;
  std::shared_ptr<SharedMemory> memory = std::move(found->second.memory);
  offered_.erase(found);
  return memory;
}

void SharedMemoryListener::Run() {
  std::array<epoll_event, 64> events;
  while (true) {
    // There is a time limit only while something depends on the time.
    const bool has_offers = std::any_of(connections_.begin(), connections_.end(),
                                        [](const auto& entry) { return entry.second->memory == nullptr; });
    const int timeout = HasRoom() && !has_offers ? -1 : static_cast<int>(absl::ToInt64Milliseconds(kRoomWait));
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), timeout);
    CloseLateOffers();
    for (int i = 0; i < count; ++i) {
      const int descriptor = events[static_cast<size_t>(i)].data.fd;
      if (descriptor == stop_) return;
      if (std::find(listeners_.begin(), listeners_.end(), descriptor) != listeners_.end()) {
        if (HasRoom()) Accept(descriptor);
      } else if (const auto found = connections_.find(descriptor); found != connections_.end()) {
        if (!Receive(*found->second)) Close(descriptor);
      }
    }
  }
}

// A connection accepted beyond the limit would have to be closed, for which this thread must not wait. So further
// connections wait in the kernel.
bool SharedMemoryListener::HasRoom() {
  const size_t most =
      std::min<size_t>(kMaxConnections, std::max<int64_t>(1, DescriptorLimit() / kDescriptorsPerConnection));
  const bool has_room = connections_.size() + closer_.pending() < most;
  if (has_room == is_listening_) return has_room;
  is_listening_ = has_room;
  for (int listener : listeners_) {
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = listener;
    epoll_ctl(epoll_, has_room ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener, &event);
  }
  return has_room;
}

void SharedMemoryListener::CloseLateOffers() {
  const absl::Time now = absl::Now();
  std::vector<int> late;
  for (const auto& [socket, connection] : connections_) {
    if (connection->memory == nullptr && connection->offer_deadline < now) late.push_back(socket);
  }
  for (int socket : late) Close(socket);
}

void SharedMemoryListener::Accept(int listener) {
  const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) {
    // If there is no descriptor, the connection keeps waiting, and epoll keeps reporting it.
    if (errno == EMFILE || errno == ENFILE) absl::SleepFor(kRoomWait);
    return;
  }
  // A user must not keep the others out, and so has at most half of the connections that the other users leave.
  ucred peer = {};
  socklen_t length = sizeof peer;
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = socket;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 || !MayConnect(peer.uid) ||
      epoll_ctl(epoll_, EPOLL_CTL_ADD, socket, &event) != 0) {
    closer_.Close(socket);
    return;
  }
  auto connection = std::make_unique<Connection>();
  connection->socket = socket;
  connection->uid = peer.uid;
  connection->offer_deadline = absl::Now() + kOfferTime;
  connections_.emplace(socket, std::move(connection));
}

bool SharedMemoryListener::Receive(Connection& connection) {
  std::array<uint8_t, kReceiveBytes> bytes;
  iovec data = {bytes.data(), connection.memory == nullptr ? kOfferBytes - connection.input_bytes : bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxDescriptorsInMessage)> control;
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t received = recvmsg(connection.socket, &message, MSG_CMSG_CLOEXEC);
  if (received < 0) return errno == EAGAIN || errno == EINTR;
  if (!TakeDescriptors(connection, message) || received == 0) return false;
  for (ssize_t at = 0; at < received;) {
    const size_t whole = connection.memory == nullptr ? kOfferBytes : kReleaseBytes;
    const size_t count = std::min(whole - connection.input_bytes, static_cast<size_t>(received - at));
    std::memcpy(connection.input.data() + connection.input_bytes, bytes.data() + at, count);
    connection.input_bytes += count;
    at += static_cast<ssize_t>(count);
    if (connection.input_bytes < whole) continue;
    connection.input_bytes = 0;
    if (connection.memory == nullptr) {
      if (!TakeOffer(connection)) return false;
      continue;
    }
    int64_t offset;
    std::memcpy(&offset, connection.input.data(), sizeof offset);
    if (!connection.memory->Release(offset)) return false;
  }
  return true;
}

bool SharedMemoryListener::TakeDescriptors(Connection& connection, msghdr& message) {
  std::vector<int> descriptors;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    const size_t before = descriptors.size();
    descriptors.resize(before + count);
    std::memcpy(descriptors.data() + before, CMSG_DATA(header), count * sizeof(int));
  }
  if (descriptors.empty()) return (message.msg_flags & MSG_CTRUNC) == 0;
  // An offer has one descriptor.
  if (descriptors.size() == 1 && (message.msg_flags & MSG_CTRUNC) == 0 && connection.descriptor < 0 &&
      connection.memory == nullptr) {
    connection.descriptor = descriptors[0];
    return true;
  }
  for (int descriptor : descriptors) closer_.Close(descriptor);
  return false;
}

bool SharedMemoryListener::TakeOffer(Connection& connection) {
  if (connection.descriptor < 0 || std::memcmp(connection.input.data(), kMagic, kMagicBytes) != 0) return false;
  const int64_t share = ShareOf(connection.uid);
  auto memory = SharedMemory::Map(connection.descriptor, mapped_bytes_.at(connection.uid), share);
  const int descriptor = std::exchange(connection.descriptor, -1);
  if (!memory.ok()) {
    closer_.Close(descriptor);
    spdlog::debug("a client's shared memory is not used: {}", std::string(memory.status().message()));
    return false;
  }
  close(descriptor);  // the mapping keeps the memory, so this is not its last close
  connection.key = absl::BytesToHexString(
      {reinterpret_cast<const char*>(connection.input.data()) + kMagicBytes, kOfferBytes - kMagicBytes});
  {
    absl::MutexLock lock(&mutex_);
    if (!offered_.emplace(connection.key, Offer{connection.uid, *memory}).second) return false;
  }
  connection.memory = *std::move(memory);
  const uint8_t yes = 1;
  return send(connection.socket, &yes, 1, MSG_NOSIGNAL) == 1;
}

int64_t SharedMemoryListener::ShareOf(uint32_t uid) {
  int64_t others = 0;
  for (auto it = mapped_bytes_.begin(); it != mapped_bytes_.end();) {
    const auto user = it++;
    if (user->first == uid) continue;
    others += *user->second;
    // The count of a user without memory is held only here.
    if (user->second.use_count() == 1) mapped_bytes_.erase(user);
  }
  auto& own = mapped_bytes_[uid];
  if (own == nullptr) own = std::make_shared<std::atomic<int64_t>>(0);
  return (max_bytes_ - others) / 2;
}

bool SharedMemoryListener::MayConnect(uint32_t uid) const {
  size_t own = 0;
  for (const auto& [socket, connection] : connections_) own += connection->uid == uid ? 1 : 0;
  return own < (kMaxConnections - (connections_.size() - own)) / 2;
}

void SharedMemoryListener::Close(int socket) {
  auto node = connections_.extract(socket);
  Connection& connection = *node.mapped();
  if (connection.memory != nullptr) {
    {
      absl::MutexLock lock(&mutex_);
      auto offered = offered_.find(connection.key);
      if (offered != offered_.end() && offered->second.memory == connection.memory) offered_.erase(offered);
    }
    connection.memory->Close();
  }
  if (connection.descriptor >= 0) closer_.Close(connection.descriptor);
  epoll_ctl(epoll_, EPOLL_CTL_DEL, socket, nullptr);
  // The client learns of the close at once, however long it takes.
  shutdown(socket, SHUT_RDWR);
  closer_.Close(socket);
}

}  // namespace hookline
