// However a call ends, its slabs come back, nobody is left stuck, and others go on.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

// Forwards one connection to a port of the loopback until it is told to drop it, as a machine does that loses its cable
// and whose kernel then resets what is left.
class Relay {
 public:
  explicit Relay(int target_port) : target_port_(target_port) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    socklen_t length = sizeof address;
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Run(); });
  }

  ~Relay() {
    Drop();
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    close(listener_);
  }

  int port() const { return port_; }

  void Drop() {
    absl::MutexLock lock(&mutex_);
    for (int socket : sockets_) shutdown(socket, SHUT_RDWR);
  }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
  }

  void Run() {
    const int client = accept(listener_, nullptr, nullptr);
    if (client < 0) return;
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(target_port_);
    EXPECT_EQ(connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    {
      absl::MutexLock lock(&mutex_);
      sockets_ = {client, server};
    }
    std::thread up([=] { Forward(client, server); });
    Forward(server, client);
    up.join();
    absl::MutexLock lock(&mutex_);
    sockets_.clear();
    close(client);
    close(server);
  }

  static void Forward(int from, int to) {
    std::vector<char> buffer(64 << 10);
    ssize_t bytes;
    while ((bytes = read(from, buffer.data(), buffer.size())) > 0) {
      if (send(to, buffer.data(), static_cast<size_t>(bytes), MSG_NOSIGNAL) != bytes) break;
    }
    shutdown(to, SHUT_RDWR);
  }

  const int target_port_;
  int listener_;
  int port_ = 0;
  absl::Mutex mutex_;
  std::vector<int> sockets_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

// A running call of either method whose client has read `started` and nothing after it: its window is full.
class OpenCall {
 public:
  OpenCall(const std::shared_ptr<grpc::Channel>& channel, bool streamed, const v1::CaptureRequest& request,
           absl::Duration deadline = absl::InfiniteDuration())
      : stub_(v1::CaptureService::NewStub(channel)) {
    if (deadline != absl::InfiniteDuration()) context_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    if (streamed) {
      stream_ = stub_->CaptureStream(&context_);
      v1::CaptureStreamRequest message;
      *message.mutable_request() = request;
      message.mutable_request()->clear_source();
      message.mutable_request()->clear_max_activations();
      EXPECT_TRUE(stream_->Write(message));
      message.mutable_tokens()->add_sequences()->mutable_ids()->Resize(100'000, 1);
      EXPECT_TRUE(stream_->Write(message));
    } else {
      reader_ = stub_->Capture(&context_, request);
    }
    v1::CaptureResponse response;
    EXPECT_TRUE(Read(&response));
    EXPECT_TRUE(response.has_started());
  }

  grpc::ClientContext& context() { return context_; }

  bool Read(v1::CaptureResponse* response) { return stream_ ? stream_->Read(response) : reader_->Read(response); }

  // Reads to the end; the last message read is kept.
  grpc::Status Finish() {
    v1::CaptureResponse response;
    while (Read(&response)) last_ = response;
    return stream_ ? stream_->Finish() : reader_->Finish();
  }

  const v1::CaptureResponse& last() const { return last_; }

 private:
  std::unique_ptr<v1::CaptureService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::CaptureResponse>> reader_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::CaptureStreamRequest, v1::CaptureResponse>> stream_;
  v1::CaptureResponse last_;
};

class CallEnds : public ServiceFixture, public ::testing::WithParamInterface<bool> {
 protected:
  static constexpr int64_t kWindow = 8;

  void SetUp() override { Serve(); }

  std::unique_ptr<OpenCall> Open(const std::shared_ptr<grpc::Channel>& channel,
                                 absl::Duration deadline = absl::InfiniteDuration()) {
    return std::make_unique<OpenCall>(channel, /*streamed=*/GetParam(), Request(kEndless), deadline);
  }

  // A capture by somebody else goes through.
  void ExpectOthersServed() {
    OpenCall other(NewChannel(address_), /*streamed=*/false, Request(1000));
    EXPECT_TRUE(other.Finish().ok());
    EXPECT_EQ(other.last().summary().hook_points(0).rows(), 1000);
  }
};

INSTANTIATE_TEST_SUITE_P(Methods, CallEnds, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "CaptureStream" : "Capture"; });

TEST_P(CallEnds, AStalledReaderHoldsItsWindowAndNobodyElse) {
  auto stalled = Open(channel_);
  ASSERT_TRUE(engine_->WaitUntilFilled(kWindow));
  ExpectOthersServed();
  ASSERT_TRUE(engine_->WaitUntilFilled(kWindow));
  // It loses nothing.
  if (!GetParam()) return;
  v1::CaptureResponse response;
  int64_t rows = 0;
  for (; rows < 100'000 && stalled->Read(&response); rows += response.chunk().rows()) {
    EXPECT_EQ(response.chunk().first_row(), rows);
  }
  EXPECT_EQ(rows, 100'000);
}

TEST_P(CallEnds, CancelReturnsEverySlab) {
  auto call = Open(channel_);
  ASSERT_TRUE(engine_->WaitUntilFilled(kWindow));
  call->context().TryCancel();
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  ExpectOthersServed();
}

TEST_P(CallEnds, CancelWhileReadingReturnsEverySlab) {
  for (int reads : {0, 1, 2, 5, 20}) {
    auto call = Open(channel_);
    v1::CaptureResponse response;
    for (int i = 0; i < reads; ++i) ASSERT_TRUE(call->Read(&response));
    call->context().TryCancel();
    EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_P(CallEnds, AnEarlyCancelReturnsEverySlab) {
  // At whatever point of its start the server is.
  auto stub = v1::CaptureService::NewStub(channel_);
  for (int i = 0; i < 50; ++i) {
    grpc::ClientContext context;
    if (GetParam()) {
      auto stream = stub->CaptureStream(&context);
      if (i % 2 == 0) stream->Write(FirstMessage());
      context.TryCancel();
      EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    } else {
      auto stream = stub->Capture(&context, Request(kEndless));
      context.TryCancel();
      EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    }
  }
  ExpectOthersServed();
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_P(CallEnds, ADeadlineReturnsEverySlab) {
  auto call = Open(channel_, absl::Milliseconds(300));
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  ExpectOthersServed();
}

TEST_P(CallEnds, ADeadlineOfAStalledReaderReturnsEverySlab) {
  auto call = Open(channel_, absl::Milliseconds(300));
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_P(CallEnds, ADisconnectReturnsEverySlab) {
  Relay relay(server_->ports()[0]);
  auto channel = NewChannel(absl::StrCat("127.0.0.1:", relay.port()));
  auto call = Open(channel);
  ASSERT_TRUE(engine_->WaitUntilFilled(kWindow));
  relay.Drop();
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  ExpectOthersServed();
}

TEST_P(CallEnds, AnErrorOfTheEngineReturnsEverySlab) {
  engine_->FailAfter(5000, absl::ResourceExhaustedError("no memory left on the device"));
  auto call = Open(channel_);
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(call->last().summary().stop_reason(), v1::STOP_REASON_ERROR);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_P(CallEnds, ShutdownEndsReadersWithASummaryAndUnavailable) {
  auto call = Open(channel_);
  std::thread drain([this] { server_->Drain(absl::Now()); });
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(call->last().summary().stop_reason(), v1::STOP_REASON_SHUTTING_DOWN);
  EXPECT_EQ(call->last().summary().resume_token(), "end");
  drain.join();
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_P(CallEnds, ShutdownEndsReadersThatNeverRead) {
  auto call = Open(channel_);
  ASSERT_TRUE(engine_->WaitUntilFilled(kWindow));
  // Its grace is over before it begins.
  server_->Drain(absl::Now() - absl::Seconds(10));
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  EXPECT_FALSE(call->Finish().ok());
}

TEST_P(CallEnds, DestroyingTheServerEndsEveryCall) {
  auto call = Open(channel_);
  ASSERT_TRUE(engine_->WaitUntilFilled(kWindow));
  server_.reset();
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  EXPECT_FALSE(call->Finish().ok());
}

TEST_F(ServiceFixture, ADrainLetsRunningCapturesEndAndRefusesNewOnes) {
  Serve();
  OpenCall running(channel_, /*streamed=*/false, Request(20'000));
  ASSERT_TRUE(engine_->WaitUntilFilled(8));
  absl::Notification drained;
  std::thread drain([&] {
    server_->Drain(absl::InfiniteFuture());
    drained.Notify();
  });
  // Refused from some moment on, while the first still runs.
  grpc::Status status;
  do {
    grpc::ClientContext context;
    auto stub = v1::CaptureService::NewStub(channel_);
    auto stream = stub->Capture(&context, Request(1));
    v1::CaptureResponse response;
    while (stream->Read(&response)) {
    }
    status = stream->Finish();
  } while (status.ok());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(drained.HasBeenNotified());
  EXPECT_TRUE(running.Finish().ok());
  EXPECT_EQ(running.last().summary().hook_points(0).rows(), 20'000);
  drain.join();
}

}  // namespace
}  // namespace hookline
