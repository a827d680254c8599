// Connections are limited, are closed if nobody uses them, and are accepted again after descriptors ran out.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/base/descriptor_limit.h"
#include "server/base/listen_address.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"
#include "tests/service/service_fixture.h"
#include "tests/support/loopback.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

class Socket {
 public:
  explicit Socket(int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }

  void Connect(int port, const char* from = "127.0.0.1") {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, from, &address.sin_addr);
    ASSERT_EQ(bind(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    address = Loopback(port);
    ASSERT_EQ(connect(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }

  void Send(const std::string& bytes) { (void)!send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

  // Reads until the server closes the connection. Returns false if it does not.
  bool IsClosedByPeer(absl::Duration patience = kPatience) {
    const timeval timeout = absl::ToTimeval(patience);
    setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    char bytes[256];
    ssize_t received;
    while ((received = recv(descriptor_, bytes, sizeof bytes, 0)) > 0) {
    }
    return received == 0 || errno == ECONNRESET;
  }

 private:
  int descriptor_;
};

class ConnectionsTest : public ServiceFixture {
 protected:
  int port() const { return server_->ports()[0]; }

  // Returns whether the server serves a new client.
  bool IsServed() {
    auto channel = NewChannel(address_);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    context.set_wait_for_ready(true);
    auto stream = v1::CaptureService::NewStub(channel)->Capture(&context, Request(1));
    v1::CaptureResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish().ok();
  }
};

// Tells when the server has failed to accept a connection, of which nothing but the log speaks.
class RefusalLog : public spdlog::sinks::base_sink<std::mutex> {
 public:
  bool WaitForRefusal() { return refused_.WaitForNotificationWithTimeout(kPatience); }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const absl::string_view text(message.payload.data(), message.payload.size());
    if (absl::StrContains(text, "new connections wait") && !refused_.HasBeenNotified()) refused_.Notify();
  }
  void flush_() override {}

  absl::Notification refused_;
};

TEST_F(ConnectionsTest, ServesAgainAfterDescriptorsRanOut) {
  const auto log = std::make_shared<RefusalLog>();
  const auto logger_before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("hookline", log));
  const auto restore_logger = absl::MakeCleanup([&] {
    server_.reset();  // whose threads log
    spdlog::set_default_logger(logger_before);
  });
  Serve();
  ASSERT_TRUE(IsServed());
  rlimit limits;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  const auto restore = absl::MakeCleanup([limits] { setrlimit(RLIMIT_NOFILE, &limits); });
  std::vector<Socket> clients(20);  // made while descriptors are left
  std::vector<Socket> rest;
  {
    Socket next(open("/dev/null", O_RDONLY | O_CLOEXEC));
    int highest = 0;
    for (int i = 0; i < 50; ++i) {
      rest.emplace_back(highest = open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
    rlimit few = limits;
    few.rlim_cur = static_cast<rlim_t>(highest) + 1;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  }
  while (true) {
    const int descriptor = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) break;
    rest.emplace_back(descriptor);
  }
  for (Socket& client : clients) client.Connect(port());
  EXPECT_TRUE(log->WaitForRefusal());
  rest.clear();
  clients.clear();
  EXPECT_TRUE(IsServed());
}

TEST_F(ConnectionsTest, AreLimitedForEachAddressAndInAll) {
  ServerOptions options;
  options.max_connections = 4;
  options.max_connections_per_address = 3;
  Serve({}, options);
  std::vector<Socket> held(4);
  for (int i = 0; i < 3; ++i) held[i].Connect(port());
  Socket one_too_many;
  one_too_many.Connect(port());
  EXPECT_TRUE(one_too_many.IsClosedByPeer());
  held[3].Connect(port(), "127.0.0.2");
  EXPECT_FALSE(held[3].IsClosedByPeer(absl::Milliseconds(200)));
  Socket elsewhere;
  elsewhere.Connect(port(), "127.0.0.3");
  EXPECT_TRUE(elsewhere.IsClosedByPeer());
  // A closed connection makes room.
  held.clear();
  EXPECT_TRUE(IsServed());
}

TEST_F(ConnectionsTest, AConnectionThatDoesNotFinishItsHandshakeIsClosed) {
  ServerOptions options;
  options.handshake_timeout = absl::Seconds(1);
  Serve({}, options);
  Socket silent;
  silent.Connect(port());
  Socket half;
  half.Connect(port());
  half.Send("PRI * HTTP/2.0\r\n");
  EXPECT_TRUE(silent.IsClosedByPeer());
  EXPECT_TRUE(half.IsClosedByPeer());
  EXPECT_TRUE(IsServed());
}

TEST_F(ConnectionsTest, WithoutCallsAreClosedAfterAWhile) {
  ServerOptions options;
  options.connection_idle = absl::Seconds(1);
  Serve({}, options);
  ASSERT_TRUE(channel_->WaitForConnected(absl::ToChronoTime(absl::Now() + kPatience)));
  EXPECT_TRUE(channel_->WaitForStateChange(GRPC_CHANNEL_READY, absl::ToChronoTime(absl::Now() + kPatience)));
  EXPECT_TRUE(IsServed());
}

TEST_F(ConnectionsTest, ALostListenerIsTold) {
  absl::Notification lost;
  ServerOptions options;
  options.on_lost = [&](absl::Status status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    lost.Notify();
  };
  Serve({}, options);
  for (int descriptor = 0; descriptor < 1024; ++descriptor) {
    int listens = 0;
    socklen_t length = sizeof listens;
    sockaddr_in address = {};
    socklen_t address_length = sizeof address;
    if (getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens != 0 &&
        getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &address_length) == 0 &&
        address.sin_family == AF_INET && ntohs(address.sin_port) == port()) {
      shutdown(descriptor, SHUT_RDWR);
    }
  }
  EXPECT_TRUE(lost.WaitForNotificationWithTimeout(kPatience));
}

TEST(DescriptorLimit, IsRaisedToWhatTheProcessMayHave) {
  rlimit limits;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  const auto restore = absl::MakeCleanup([limits] { setrlimit(RLIMIT_NOFILE, &limits); });
  rlimit low = limits;
  low.rlim_cur = 256;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(DescriptorLimit(), 256);
  EXPECT_EQ(RaiseDescriptorLimit(), static_cast<int64_t>(limits.rlim_max));
}

TEST(ListenAddress, IsLoopbackByItsAddressAndNotByItsName) {
  const auto is_loopback = [](const std::string& address) {
    auto bound = BindAddress(address);
    EXPECT_TRUE(bound.ok()) << bound.status();
    if (!bound.ok()) return false;
    for (int listener : bound->sockets) close(listener);
    EXPECT_GT(bound->port, 0);
    const auto before_it_is_bound = IsLoopbackAddress(address);
    EXPECT_TRUE(before_it_is_bound.ok()) << before_it_is_bound.status();
    EXPECT_EQ(before_it_is_bound.value_or(!bound->is_loopback), bound->is_loopback);
    return bound->is_loopback;
  };
  EXPECT_TRUE(is_loopback("127.0.0.1:0"));
  EXPECT_TRUE(is_loopback("127.8.9.1:0"));
  EXPECT_TRUE(is_loopback("localhost:0"));
  EXPECT_FALSE(is_loopback("0.0.0.0:0"));
  EXPECT_FALSE(is_loopback(":0")) << "every interface";
  // This name begins like an address, but no machine has it.
  EXPECT_FALSE(BindAddress("127.0.0.1.example.invalid:0").ok());
  for (const char* malformed : {"", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:65536", "::1:80", "unix:"}) {
    EXPECT_THAT(std::string(BindAddress(malformed).status().message()), HasSubstr("cannot listen on `"));
  }
  for (const char* nowhere : {"", "127.0.0.1", "127.0.0.1:http", "127.0.0.1.example.invalid:0"}) {
    EXPECT_THAT(std::string(IsLoopbackAddress(nowhere).status().message()), HasSubstr("cannot listen on `"));
  }
}

TEST(ListenAddress, ReplacesAUnixSocketThatNobodyListensOn) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/listen_address_", getpid(), ".sock");
  auto first = BindAddress("unix:" + path);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(BindAddress("unix:" + path).ok());
  close(first->sockets[0]);
  auto second = BindAddress("unix:" + path);
  ASSERT_TRUE(second.ok()) << second.status();
  close(second->sockets[0]);
  unlink(path.c_str());
  // A file that is not a socket is left alone.
  std::ofstream(path) << "mine";
  EXPECT_FALSE(BindAddress("unix:" + path).ok());
  std::string content;
  std::ifstream(path) >> content;
  EXPECT_EQ(content, "mine");
  unlink(path.c_str());
}

}  // namespace
}  // namespace hookline
