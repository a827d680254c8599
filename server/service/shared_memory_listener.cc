#include "server/service/shared_memory_listener.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

constexpr char kSharedMemoryMetadata[] = "hookline-shared-memory";
constexpr char kMagic[] = "HKLNSHM1";
constexpr size_t kMagicBytes = 8;
constexpr size_t kOfferBytes = 24;
constexpr size_t kReleaseBytes = 8;
// Connections that offer nothing cost a descriptor each; calls are far fewer.
constexpr size_t kMaxConnections = 1024;
constexpr absl::Duration kDescriptorWait = absl::Milliseconds(100);
// Pieces are about a megabyte: this many releases at once are more than there are.
constexpr size_t kReceiveBytes = 4096;

}  // namespace

std::shared_ptr<SharedMemory> TakeOffered(SharedMemoryListener* listener, const grpc::CallbackServerContext& context) {
  if (listener == nullptr) return nullptr;
  const auto& metadata = context.client_metadata();
  const auto key = metadata.find(kSharedMemoryMetadata);
  return key == metadata.end() ? nullptr : listener->Take({key->second.data(), key->second.size()});
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
  for (int listener : listeners_) close(listener);
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

std::shared_ptr<SharedMemory> SharedMemoryListener::Take(absl::string_view key) {
  absl::MutexLock lock(&mutex_);
  auto node = offered_.extract(key);
  return node.empty() ? nullptr : std::move(node.mapped());
}

void SharedMemoryListener::Run() {
  std::array<epoll_event, 64> events;
  while (true) {
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const int descriptor = events[static_cast<size_t>(i)].data.fd;
      if (descriptor == stop_) return;
      if (std::find(listeners_.begin(), listeners_.end(), descriptor) != listeners_.end()) {
        Accept(descriptor);
      } else if (!Receive(*connections_.at(descriptor))) {
        Close(descriptor);
      }
    }
  }
}

void SharedMemoryListener::Accept(int listener) {
  const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) {
    // Without descriptors the connection keeps waiting, and epoll keeps saying so.
    if (errno == EMFILE || errno == ENFILE) absl::SleepFor(kDescriptorWait);
    return;
  }
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = socket;
  if (connections_.size() >= kMaxConnections || epoll_ctl(epoll_, EPOLL_CTL_ADD, socket, &event) != 0) {
    close(socket);
    return;
  }
  auto connection = std::make_unique<Connection>();
  connection->socket = socket;
  connections_.emplace(socket, std::move(connection));
}

bool SharedMemoryListener::Receive(Connection& connection) {
  std::array<uint8_t, kReceiveBytes> bytes;
  iovec data = {bytes.data(), connection.memory == nullptr ? kOfferBytes - connection.input_bytes : bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control;
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t received = recvmsg(connection.socket, &message, MSG_CMSG_CLOEXEC);
  if (received < 0) return errno == EAGAIN || errno == EINTR;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int descriptor;
    std::memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    // One for each offer.
    if (connection.descriptor >= 0 || connection.memory != nullptr) {
      close(descriptor);
      return false;
    }
    connection.descriptor = descriptor;
  }
  if (received == 0) return false;
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

bool SharedMemoryListener::TakeOffer(Connection& connection) {
  if (connection.descriptor < 0 || std::memcmp(connection.input.data(), kMagic, kMagicBytes) != 0) return false;
  auto memory = SharedMemory::Map(connection.descriptor, mapped_bytes_, max_bytes_);
  close(connection.descriptor);
  connection.descriptor = -1;
  if (!memory.ok()) {
    spdlog::debug("a client's shared memory is not used: {}", std::string(memory.status().message()));
    return false;
  }
  connection.key = absl::BytesToHexString(
      {reinterpret_cast<const char*>(connection.input.data()) + kMagicBytes, kOfferBytes - kMagicBytes});
  {
    absl::MutexLock lock(&mutex_);
    if (!offered_.emplace(connection.key, *memory).second) return false;
  }
  connection.memory = *std::move(memory);
  const uint8_t yes = 1;
  return send(connection.socket, &yes, 1, MSG_NOSIGNAL) == 1;
}

void SharedMemoryListener::Close(int socket) {
  auto node = connections_.extract(socket);
  Connection& connection = *node.mapped();
  if (connection.memory != nullptr) {
    {
      absl::MutexLock lock(&mutex_);
      auto offered = offered_.find(connection.key);
      if (offered != offered_.end() && offered->second == connection.memory) offered_.erase(offered);
    }
    connection.memory->Close();
  }
  if (connection.descriptor >= 0) close(connection.descriptor);
  close(socket);
}

}  // namespace hookline
