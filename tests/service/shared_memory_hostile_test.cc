// Clients that offer or release the wrong things, or offer nothing, do not harm the server, delay others or use up
// all memory.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <array>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/service/shared_memory/listener.h"
#include "tests/service/shared_memory_fixture.h"
#include "tests/support/loopback.h"

namespace hookline {
namespace {

TEST_F(SharedMemoryTest, AClientThatReleasesWhatItDoesNotHoldIsClosed) {
  for (int64_t offset : {int64_t{1}, int64_t{-4096}, int64_t{0}, 3 * kMebibyte, int64_t{1} << 40}) {
    Offer offer(port());
    ASSERT_TRUE(offer.Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte));
    offer.Release(offset);
    EXPECT_FALSE(offer.Answered()) << offset;
  }
  // The memory is released twice; the second release is not the client's to make. The other rows come in messages.
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
  // Other clients are still served.
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
  // An offer in pieces is accepted.
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

// A TCP socket whose last close waits for 20 seconds, because it has data that nobody takes.
class LingeringSocket {
 public:
  LingeringSocket() {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int small = 4096;
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    sockaddr_in address = Loopback(0);
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

  // Sends the socket away, so that the receiver has the last reference.
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
    not_received.SendTo(offer);  // after the first, at which the server ends the connection
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

TEST_F(SharedMemoryTest, AConnectionThatOffersNothingIsClosed) {
  Offer silent(port());
  EXPECT_FALSE(silent.Answered());
  EXPECT_TRUE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte));
}

TEST(SharedMemoryListener, WhatAUserOffersServesThatUsersCallsOnly) {
  constexpr int kPort = 1;  // names the socket, and is not opened
  SharedMemoryListener listener;
  listener.Listen({kPort}, 8 * kMebibyte);
  Offer offer(kPort);
  ASSERT_TRUE(offer.Make(MemoryFile(kMebibyte), kMebibyte, 'k'));
  const std::string key = absl::BytesToHexString(std::string(16, 'k'));
  EXPECT_EQ(listener.Take(key, getuid() + 1), nullptr);
  EXPECT_NE(listener.Take(key, getuid()), nullptr) << "nor did the other user take it away";
}

TEST_F(SharedMemoryTest, CountsWhatAllClientsOffer) {
  ServeWith(8 * kMebibyte);  // one user may have half of it
  {
    Offer first(port());
    ASSERT_TRUE(first.Make(MemoryFile(3 * kMebibyte), 3 * kMebibyte, '1'));
    EXPECT_FALSE(Offer(port()).Make(MemoryFile(2 * kMebibyte), 2 * kMebibyte, '2'));
    EXPECT_TRUE(Offer(port()).Make(MemoryFile(kMebibyte), kMebibyte, '3'));
  }
  // The memory is free again when the connections end, which happens a moment later.
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (!Offer(port()).Make(MemoryFile(4 * kMebibyte), 4 * kMebibyte, '4')) {
    ASSERT_LT(absl::Now(), give_up);
    std::this_thread::yield();
  }
}

}  // namespace
}  // namespace hookline
