// Runs a server that takes clients' memory, with a client that was written from SHARED_MEMORY.md.
#ifndef HOOKLINE_TESTS_SERVICE_SHARED_MEMORY_FIXTURE_H_
#define HOOKLINE_TESTS_SERVICE_SHARED_MEMORY_FIXTURE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/service/server.h"
#include "tests/service/service_fixture.h"

namespace hookline {

inline constexpr int64_t kMebibyte = int64_t{1} << 20;
inline constexpr int kSealed = F_SEAL_SHRINK | F_SEAL_GROW;

inline int MemoryFile(int64_t bytes, int seals = kSealed) {
  const int descriptor = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(ftruncate(descriptor, bytes), 0);
  EXPECT_EQ(fcntl(descriptor, F_ADD_SEALS, seals), 0);
  return descriptor;
}

// A connection to a server's socket for shared memory.
class Offer {
 public:
  explicit Offer(int port) : socket_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const std::string name = absl::StrCat("hookline-", port);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    connected_ = connect(socket_, reinterpret_cast<sockaddr*>(&address),
                         static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())) == 0;
  }
  ~Offer() {
    Close();
    if (memory_ != nullptr) munmap(memory_, static_cast<size_t>(bytes_));
  }

  bool connected() const { return connected_; }

  // Sends bytes, and beside them a descriptor unless it is negative.
  void Send(const std::string& bytes, int descriptor = -1) {
    SendMany(bytes, descriptor < 0 ? std::vector<int>() : std::vector<int>{descriptor});
  }

  void SendMany(const std::string& bytes, const std::vector<int>& descriptors) {
    iovec data = {const_cast<char*>(bytes.data()), bytes.size()};
    const size_t descriptor_bytes = descriptors.size() * sizeof(int);
    std::vector<cmsghdr> control(CMSG_SPACE(descriptor_bytes) / sizeof(cmsghdr) + 1);
    msghdr message = {};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(descriptor_bytes);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(descriptor_bytes);
      std::memcpy(CMSG_DATA(header), descriptors.data(), descriptor_bytes);
    }
    (void)!sendmsg(socket_, &message, MSG_NOSIGNAL);
  }

  // Returns whether the server accepts the offer; otherwise it closes the connection.
  bool Answered() {
    char answer = 0;
    return recv(socket_, &answer, 1, 0) == 1 && answer == 1;
  }

  // Makes a whole offer, with a key made of `letter`. Takes ownership of the descriptor.
  bool Make(int descriptor, int64_t bytes, char letter = 'k') {
    key_ = std::string(16, letter);
    Send(absl::StrCat("HKLNSHM1", key_), descriptor);
    const bool taken = Answered();
    if (taken) {
      bytes_ = bytes;
      memory_ = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, descriptor, 0);
    }
    close(descriptor);
    return taken;
  }

  void AddTo(grpc::ClientContext& context) const {
    context.AddMetadata("hookline-shared-memory", absl::BytesToHexString(key_));
  }

  float At(int64_t offset) const {
    float value;
    std::memcpy(&value, static_cast<const char*>(memory_) + offset, sizeof value);
    return value;
  }

  void Release(int64_t offset) { Send(std::string(reinterpret_cast<const char*>(&offset), sizeof offset)); }

  void Close() {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
  }

 private:
  int socket_;
  bool connected_;
  std::string key_;
  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

class SharedMemoryTest : public ServiceFixture {
 protected:
  void SetUp() override { Serve(); }

  int port() const { return server_->ports()[0]; }

  void ServeWith(int64_t shared_memory_bytes) {
    server_.reset();
    ServerOptions options;
    options.shared_memory_bytes = shared_memory_bytes;
    Serve({}, options);
  }

  std::unique_ptr<client::Client> Client(int64_t shared_memory_bytes) {
    client::ClientOptions options;
    options.shared_memory_bytes = shared_memory_bytes;
    auto client = client::Client::Connect(address_, options);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
};

// Reads the next chunk, whose first value must be the number of its first row, as the fake engine makes it.
inline int64_t ExpectChunk(grpc::ClientReader<v1::CaptureResponse>& reader, const Offer& offer) {
  v1::CaptureResponse response;
  EXPECT_TRUE(reader.Read(&response) && response.has_chunk());
  const v1::ActivationChunk& chunk = response.chunk();
  EXPECT_TRUE(chunk.has_data_offset());
  EXPECT_TRUE(chunk.data().empty());
  EXPECT_EQ(offer.At(chunk.data_offset()), static_cast<float>(chunk.first_row()));
  return chunk.data_offset();
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SERVICE_SHARED_MEMORY_FIXTURE_H_
