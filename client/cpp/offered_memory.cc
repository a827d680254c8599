#include "client/cpp/offered_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/address.h"

namespace hookline::client {
namespace {

constexpr char kMagic[] = "HKLNSHM1";
constexpr size_t kMagicBytes = 8;
constexpr size_t kKeyBytes = 16;
// The server is told when this share of the pieces has been read.
constexpr int64_t kReleaseShare = 2;
// A server answers at once; something else that has the socket's name may not.
constexpr timeval kAnswerTimeout = {2, 0};

// Returns the port of a loopback address; 0 for any other.
int LoopbackPort(absl::string_view address) {
  const HostPort where = ServerHostPort(address);
  return IsLoopbackHost(where.host) ? where.port : 0;
}

// Returns a connected socket, or -1 if no server listens.
int ConnectToServer(int port) {
  const std::string name = absl::StrCat("hookline-", port);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // An abstract name begins with a zero byte.
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection < 0) return -1;
  setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &kAnswerTimeout, sizeof kAnswerTimeout);
  setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &kAnswerTimeout, sizeof kAnswerTimeout);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (connect(connection, reinterpret_cast<sockaddr*>(&address), length) == 0) return connection;
  close(connection);
  return -1;
}

// Returns whether the server takes the memory.
bool SendOffer(int connection, const std::array<char, kMagicBytes + kKeyBytes>& offer, int descriptor) {
  iovec data = {const_cast<char*>(offer.data()), offer.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof descriptor)> control = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof descriptor);
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  uint8_t answer = 0;
  return sendmsg(connection, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(offer.size()) &&
         recv(connection, &answer, 1, 0) == 1 && answer == 1;
}

}  // namespace

std::shared_ptr<OfferedMemory> OfferedMemory::Offer(const std::string& address, int64_t bytes) {
  const int port = LoopbackPort(address);
  if (bytes <= 0 || port == 0) return nullptr;
  const int connection = ConnectToServer(port);
  if (connection < 0) return nullptr;
  absl::Cleanup close_connection = [connection] { close(connection); };

  const int descriptor = memfd_create("hookline", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) return nullptr;
  absl::Cleanup close_descriptor = [descriptor] { close(descriptor); };
  std::array<char, kMagicBytes + kKeyBytes> offer;
  std::memcpy(offer.data(), kMagic, kMagicBytes);
  if (ftruncate(descriptor, bytes) != 0 || fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0 ||
      getrandom(offer.data() + kMagicBytes, kKeyBytes, 0) != kKeyBytes || !SendOffer(connection, offer, descriptor)) {
    return nullptr;
  }
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) return nullptr;
  std::move(close_connection).Cancel();
  return std::shared_ptr<OfferedMemory>(
      new OfferedMemory(absl::BytesToHexString({offer.data() + kMagicBytes, kKeyBytes}),
                        static_cast<const uint8_t*>(data), bytes, connection));
}

OfferedMemory::~OfferedMemory() {
  close(socket_);
  munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(bytes_));
}

const uint8_t* OfferedMemory::Hold(int64_t offset, int64_t bytes) {
  if (offset < 0 || bytes < 0 || bytes > bytes_ || offset > bytes_ - bytes) return nullptr;
  absl::MutexLock lock(&mutex_);
  ++held_;
  return data_ + offset;
}

void OfferedMemory::SetPieces(int64_t pieces) {
  absl::MutexLock lock(&mutex_);
  pieces_ = pieces;
}

int64_t OfferedMemory::pieces() const {
  absl::MutexLock lock(&mutex_);
  return pieces_;
}

void OfferedMemory::Release(int64_t offset) {
  absl::MutexLock lock(&mutex_);
  --held_;
  released_.push_back(offset);
  // Even with this share unreported and half of the pieces held, the server still has a piece to continue with.
  if (static_cast<int64_t>(released_.size()) < pieces_ / kReleaseShare) return;
  // All offsets are sent or none: they fit the socket's buffer or wait for room. If sending fails because the server
  // has closed the connection, its call has ended, too.
  (void)!send(socket_, released_.data(), released_.size() * sizeof released_[0], MSG_NOSIGNAL);
  released_.clear();
}

int64_t OfferedMemory::held() const {
  absl::MutexLock lock(&mutex_);
  return held_;
}

}  // namespace hookline::client
