// The input is what a client on the server's machine sends on the socket for shared memory. Before each piece, one byte
// gives the length of the piece (0 to 63) and the descriptor that is sent along: none, valid memory, memory without
// seals, or a pipe.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/service/shared_memory/listener.h"
#include "tests/fuzz/input.h"

namespace {

// The sockets are abstract names, so no TCP port is taken.
int Port() { return 100000 + static_cast<int>(getpid()); }

int Descriptor(int kind) {
  if (kind == 0) return -1;
  if (kind == 3) {
    std::array<int, 2> ends;
    if (pipe2(ends.data(), O_CLOEXEC) != 0) return -1;
    close(ends[1]);
    return ends[0];
  }
  const int memory = memfd_create("offer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (ftruncate(memory, 65536) != 0) __builtin_trap();
  if (kind == 1) fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
  return memory;
}

void Send(int socket, absl::string_view piece, int descriptor) {
  iovec data = {const_cast<char*>(piece.data()), piece.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  (void)!sendmsg(socket, &message, MSG_NOSIGNAL);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static hookline::SharedMemoryListener& listener = *[] {
    static hookline::SharedMemoryListener made;
    made.Listen({Port()}, int64_t{1} << 20);
    return &made;
  }();
  const std::string name = absl::StrCat("hookline-", Port());
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(client, reinterpret_cast<const sockaddr*>(&address),
              static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())) != 0) {
    __builtin_trap();  // the listener no longer listens
  }
  for (size_t at = 0; at < bytes;) {
    const size_t length = std::min<size_t>(data[at] & 63, bytes - at - 1);
    const int descriptor = Descriptor(data[at] >> 6);
    Send(client, hookline::AsText(data + at + 1, length), descriptor);
    if (descriptor >= 0) close(descriptor);
    at += 1 + length;
  }
  // Every connection is read to its end before the next one begins.
  shutdown(client, SHUT_WR);
  std::array<char, 16> answer;
  while (recv(client, answer.data(), answer.size(), 0) > 0) {
  }
  close(client);
  listener.Take("00000000000000000000000000000000", getuid());
  return 0;
}
