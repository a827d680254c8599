// Values through memory that a client shares: what SHARED_MEMORY.md promises, by a client written from it, and with the
// C++ client.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/service/server.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMebibyte = int64_t{1} << 20;
constexpr int64_t kWidth = 768;
constexpr int kSealed = F_SEAL_SHRINK | F_SEAL_GROW;

int MemoryFile(int64_t bytes, int seals = kSealed) {
  const int descriptor = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(ftruncate(descriptor, bytes), 0);
  EXPECT_EQ(fcntl(descriptor, F_ADD_SEALS, seals), 0);
  return descriptor;
}

// A connection to a server's socket for memory.
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

  // Sends bytes, and a descriptor beside them unless it is negative.
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

  // Returns whether the server answers; it closes the connection otherwise.
  bool Answered() {
    char answer = 0;
    return recv(socket_, &answer, 1, 0) == 1 && answer == 1;
  }

  // The whole of it, with a key made of `letter`. Takes the descriptor.
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

// The next chunk, whose first value must be its first row's number, as the fake engine makes it.
int64_t ExpectChunk(grpc::ClientReader<v1::CaptureResponse>& reader, const Offer& offer) {
  v1::CaptureResponse response;
  EXPECT_TRUE(reader.Read(&response) && response.has_chunk());
  const v1::ActivationChunk& chunk = response.chunk();
  EXPECT_TRUE(chunk.has_data_offset());
  EXPECT_TRUE(chunk.data().empty());
  EXPECT_EQ(offer.At(chunk.data_offset()), static_cast<float>(chunk.first_row()));
  return chunk.data_offset();
}

TEST_F(SharedMemoryTest, BringsTheSameRowsAsTheWire) {
  struct Rows {
    std::map<std::string, std::vector<float>> values;
    int64_t shared_chunks = 0;
    int64_t shared_memory_bytes = 0;
  };
  const auto rows_of = [this](int64_t shared_memory_bytes) {
    Rows rows;
    auto call = Client(shared_memory_bytes)->Capture(Request(5000, {"a", "b"}));
    while (true) {
      auto event = call->Next();
      EXPECT_TRUE(event.ok()) << event.status();
      if (!event.ok() || !event->has_value()) return rows;
      if (auto* started = std::get_if<v1::CaptureStarted>(&**event)) {
        rows.shared_memory_bytes = started->shared_memory_bytes();
      } else if (auto* chunk = std::get_if<client::Chunk>(&**event)) {
        std::vector<float>& values = rows.values[chunk->header().hook_point()];
        const size_t before = values.size();
        values.resize(before + static_cast<size_t>(chunk->data_bytes()) / sizeof(float));
        chunk->CopyData(0, chunk->data_bytes(), values.data() + before);
        if (chunk->header().has_data_offset()) ++rows.shared_chunks;
      }
    }
  };
  const Rows shared = rows_of(8 * kMebibyte);
  const Rows sent = rows_of(0);
  EXPECT_EQ(shared.shared_memory_bytes, 8 * kMebibyte);
  EXPECT_GT(shared.shared_chunks, 20);
  EXPECT_EQ(sent.shared_memory_bytes, 0);
  EXPECT_EQ(sent.shared_chunks, 0);
  EXPECT_EQ(shared.values.at("a").size(), static_cast<size_t>(5000 * kWidth));
  EXPECT_EQ(shared.values, sent.values);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

class KeptChunks : public SharedMemoryTest, public ::testing::WithParamInterface<int64_t> {};

// A slab's worth of values is far less than a message may hold, or about as much.
INSTANTIATE_TEST_SUITE_P(SlabBytes, KeptChunks, ::testing::Values(128 << 10, 1 << 20));

TEST_P(KeptChunks, DoNotHoldUpTheRest) {
  server_.reset();
  FakeEngineOptions engine;
  engine.slab_bytes = GetParam();
  Serve(std::move(engine));
  auto client = Client(8 * kMebibyte);
  auto call = client->Capture(Request(10'000));
  std::vector<client::Chunk> kept;
  while (true) {
    auto event = call->Next();
    ASSERT_TRUE(event.ok()) << event.status();
    if (!event->has_value()) break;
    if (auto* chunk = std::get_if<client::Chunk>(&**event)) kept.push_back(std::move(*chunk));
  }
  call.reset();
  int64_t rows = 0;
  for (const client::Chunk& chunk : kept) {
    float first;
    chunk.CopyData(0, sizeof first, &first);
    EXPECT_EQ(first, static_cast<float>(rows));
    rows += chunk.header().rows();
  }
  EXPECT_EQ(rows, 10'000);
}

TEST_F(SharedMemoryTest, WhileItIsFullTheRestStaysWithTheServer) {
  Offer offer(port());
  ASSERT_TRUE(offer.Make(MemoryFile(4 * kMebibyte), 4 * kMebibyte));
  grpc::ClientContext context;
  offer.AddTo(context);
  auto reader = stub()->Capture(&context, Request(20'000));
  v1::CaptureResponse response;
  ASSERT_TRUE(reader->Read(&response));
  ASSERT_EQ(response.started().shared_memory_bytes(), 4 * kMebibyte);
  const int64_t pieces = 4 * kMebibyte / response.started().max_message_bytes();
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < pieces; ++i) offsets.push_back(ExpectChunk(*reader, offer));
  EXPECT_TRUE(engine_->WaitUntilFilled(8));
  // The first values are overwritten only after their release.
  const float first_value = offer.At(offsets[0]);
  offer.Release(offsets[1]);
  EXPECT_EQ(ExpectChunk(*reader, offer), offsets[1]);
  EXPECT_EQ(offer.At(offsets[0]), first_value);
  for (int64_t offset : offsets) offer.Release(offset);
  while (reader->Read(&response) && response.has_chunk()) {
    if (response.chunk().has_data_offset()) offer.Release(response.chunk().data_offset());
  }
  EXPECT_EQ(response.summary().hook_points(0).rows(), 20'000);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(SharedMemoryTest, ACallThatEndsWhileItIsFullGivesItsSlabsBack) {
  Offer offer(port());
  ASSERT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
  {
    grpc::ClientContext context;
    offer.AddTo(context);
    auto reader = stub()->Capture(&context, Request(kEndless));
    v1::CaptureResponse response;
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_TRUE(engine_->WaitUntilFilled(8));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(SharedMemoryTest, AfterTheConnectionIsClosedTheRestComesInMessages) {
  Offer offer(port());
  ASSERT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
  grpc::ClientContext context;
  offer.AddTo(context);
  auto reader = stub()->Capture(&context, Request(5000));
  v1::CaptureResponse response;
  ASSERT_TRUE(reader->Read(&response));
  ExpectChunk(*reader, offer);
  EXPECT_TRUE(engine_->WaitUntilFilled(8));
  offer.Close();
  int64_t sent = 0;
  while (reader->Read(&response) && response.has_chunk()) sent += response.chunk().data().empty() ? 0 : 1;
  EXPECT_GT(sent, 10);
  EXPECT_EQ(response.summary().hook_points(0).rows(), 5000);
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(SharedMemoryTest, WhoReleasesWhatItDoesNotHoldIsClosed) {
  for (int64_t offset : {int64_t{1}, int64_t{-4096}, int64_t{0}, 3 * kMebibyte, int64_t{1} << 40}) {
    Offer offer(port());
    ASSERT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
    offer.Release(offset);
    EXPECT_FALSE(offer.Answered()) << offset;
  }
  // It is released twice: the second is not the client's to release, and the rest comes in messages.
  Offer offer(port());
  ASSERT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
  grpc::ClientContext context;
  offer.AddTo(context);
  auto reader = stub()->Capture(&context, Request(300));
  v1::CaptureResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const int64_t offset = ExpectChunk(*reader, offer);
  while (reader->Read(&response) && response.has_chunk()) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  offer.Release(offset);
  offer.Release(offset);
  EXPECT_FALSE(offer.Answered());
}

TEST_F(SharedMemoryTest, TakesNoMemoryThatCouldHarmTheServer) {
  struct Case {
    const char* what;
    int descriptor;
  };
  const int regular = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  int read_only_writes = MemoryFile(kMebibyte, kSealed | F_SEAL_WRITE);
  for (const Case& refused :
       {Case{"not sealed", MemoryFile(kMebibyte, 0)}, Case{"may shrink", MemoryFile(kMebibyte, F_SEAL_GROW)},
        Case{"too small", MemoryFile(4096)}, Case{"too large", MemoryFile(65 * kMebibyte)},
        Case{"no pages", MemoryFile(kMebibyte + 1)}, Case{"a file", regular},
        Case{"not to be written", read_only_writes}, Case{"a socket", socket(AF_UNIX, SOCK_STREAM, 0)}}) {
    EXPECT_FALSE(Offer(port()).Make(refused.descriptor, kMebibyte)) << refused.what;
  }
  // Others go on.
  EXPECT_TRUE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte));
}

TEST_F(SharedMemoryTest, ClosesConnectionsThatSaySomethingElse) {
  const int memory = MemoryFile(kMebibyte);
  Offer nothing(port());
  nothing.Send(std::string(24, 'x'), memory);
  EXPECT_FALSE(nothing.Answered());
  Offer without(port());
  without.Send(absl::StrCat("HKLNSHM1", std::string(16, 'k')));
  EXPECT_FALSE(without.Answered());
  Offer two(port());
  two.Send("HKLN", memory);
  two.Send("SHM1", memory);
  EXPECT_FALSE(two.Answered());
  // In pieces it is good.
  Offer pieces(port());
  pieces.Send("HKLN", memory);
  pieces.Send("SHM1");
  pieces.Send(std::string(16, 'k'));
  EXPECT_TRUE(pieces.Answered());
  // A key that is in use is not taken again.
  EXPECT_FALSE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte, 'k'));
  close(memory);
}

int OpenDescriptors() {
  int open_descriptors = 0;
  for (int descriptor = 0; descriptor < 1024; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) >= 0) ++open_descriptors;
  }
  return open_descriptors;
}

TEST_F(SharedMemoryTest, ClosesEveryDescriptorThatArrives) {
  ASSERT_TRUE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte));
  const int before = OpenDescriptors();
  const int memory = MemoryFile(kMebibyte);
  for (size_t count : {2, 3, 100, 253}) {
    Offer offer(port());
    offer.SendMany("HKLNSHM1", std::vector<int>(count, memory));
    EXPECT_FALSE(offer.Answered()) << count;
  }
  close(memory);
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (OpenDescriptors() > before && absl::Now() < give_up) std::this_thread::yield();
  EXPECT_LE(OpenDescriptors(), before);
}

// A TCP socket whose last close waits for 20 seconds: it has data that nobody takes.
class LingeringSocket {
 public:
  LingeringSocket() {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int small = 4096;
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    EXPECT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener, 1), 0);
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    peer_ = accept(listener, nullptr, nullptr);
    close(listener);
    const std::string data(65536, 'x');
    while (send(socket_, data.data(), data.size(), MSG_DONTWAIT) > 0) {
    }
    const linger twenty_seconds = {1, 20};
    setsockopt(socket_, SOL_SOCKET, SO_LINGER, &twenty_seconds, sizeof twenty_seconds);
  }
  // Resets the connection, which ends the wait.
  ~LingeringSocket() {
    const linger reset = {1, 0};
    setsockopt(peer_, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(peer_);
  }

  // Gives it away: the receiver has the last reference.
  void SendTo(Offer& offer) {
    offer.Send("H", socket_);
    close(socket_);
  }

 private:
  int socket_;
  int peer_;
};

TEST_F(SharedMemoryTest, ADescriptorWhoseCloseBlocksHoldsUpNobody) {
  LingeringSocket received;
  LingeringSocket not_received;
  {
    Offer offer(port());
    received.SendTo(offer);
    not_received.SendTo(offer);  // behind the first, with which the connection ends
  }
  Offer offer(port());
  const absl::Time begin = absl::Now();
  EXPECT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
  grpc::ClientContext context;
  offer.AddTo(context);
  auto reader = stub()->Capture(&context, Request(5000));
  v1::CaptureResponse response;
  while (reader->Read(&response)) {
    if (response.chunk().has_data_offset()) offer.Release(response.chunk().data_offset());
  }
  EXPECT_TRUE(reader->Finish().ok());
  server_.reset();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(15));
}

TEST_F(SharedMemoryTest, WhoeverOffersNothingIsClosed) {
  Offer silent(port());
  EXPECT_FALSE(silent.Answered());
  EXPECT_TRUE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte));
}

TEST_F(SharedMemoryTest, CountsWhatAllClientsOffer) {
  ServeWith(8 * kMebibyte);  // of which one user may have half
  {
    Offer first(port());
    ASSERT_TRUE(first.Make(MemoryFile(3 * kMebibyte), 3 * kMebibyte, '1'));
    EXPECT_FALSE(Offer(port()).Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte, '2'));
    EXPECT_TRUE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte, '3'));
  }
  // It comes back with the connections, which end a moment later.
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (!Offer(port()).Make(MemoryFile(4 * kMebibyte), 4 * kMebibyte, '4')) {
    ASSERT_LT(absl::Now(), give_up);
    std::this_thread::yield();
  }
}

TEST_F(SharedMemoryTest, WithoutItValuesComeInMessages) {
  const auto chunks_sent = [this](const std::string& key, v1::CaptureRequest request) {
    grpc::ClientContext context;
    context.AddMetadata("hookline-shared-memory", key);
    auto reader = stub()->Capture(&context, request);
    v1::CaptureResponse response;
    int64_t chunks = 0;
    while (reader->Read(&response)) {
      if (response.has_started()) {
        EXPECT_EQ(response.started().shared_memory_bytes(), 0);
      }
      if (response.has_chunk()) {
        EXPECT_FALSE(response.chunk().has_data_offset());
        ++chunks;
      }
    }
    EXPECT_TRUE(reader->Finish().ok());
    return chunks;
  };
  const std::string key = absl::BytesToHexString(std::string(16, 'k'));
  EXPECT_GT(chunks_sent(key, Request(1000)), 0);  // nothing was offered
  EXPECT_GT(chunks_sent("nonsense", Request(1000)), 0);
  {
    Offer offer(port());
    ASSERT_TRUE(offer.Make(MemoryFile(4 * kMebibyte), 4 * kMebibyte));
    v1::CaptureRequest values = Request(1000);
    values.set_encoding(v1::ENCODING_VALUES);
    EXPECT_GT(chunks_sent(key, values), 0);
    EXPECT_GT(chunks_sent(key, Request(1000)), 0);  // one call for each
  }
  ServeWith(0);
  EXPECT_FALSE(Offer(port()).connected());
  EXPECT_GT(chunks_sent(key, Request(1000)), 0);
}

TEST_F(SharedMemoryTest, SmallChunksComeInMessages) {
  Offer offer(port());
  ASSERT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
  grpc::ClientContext context;
  offer.AddTo(context);
  auto reader = stub()->Capture(&context, Request(10));
  v1::CaptureResponse response;
  ASSERT_TRUE(reader->Read(&response) && reader->Read(&response));
  EXPECT_EQ(response.chunk().data().size(), 10 * kWidth * sizeof(float));
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(SharedMemoryTest, MemoryForLessThanAMessageIsNotUsed) {
  auto client = Client(client::kMinSharedMemoryBytes);
  auto call = client->Capture(Request(1000));
  auto event = call->Next();
  ASSERT_TRUE(event.ok() && event->has_value());
  EXPECT_EQ(std::get<v1::CaptureStarted>(**event).shared_memory_bytes(), 0);
}

TEST_F(SharedMemoryTest, TheClientTakesNoOtherSizes) {
  for (int64_t bytes : {int64_t{-1}, int64_t{4096}, kMebibyte + 1, 65 * kMebibyte}) {
    client::ClientOptions options;
    options.shared_memory_bytes = bytes;
    EXPECT_THAT(std::string(client::Client::Connect(address_, options).status().message()),
                HasSubstr(absl::StrCat("shared_memory_bytes: ", bytes)));
  }
}

}  // namespace
}  // namespace hookline
