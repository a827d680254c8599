// However a call ends, its slabs come back, no thread hangs, and other calls go on.
#include <memory>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "tests/service/relay.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

// A running call of either method whose client has read `started` and nothing more, so that its window is full.
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
    // A deadline may pass before the call has started.
    const bool started = Read(&response);
    EXPECT_TRUE(deadline != absl::InfiniteDuration() || (started && response.has_started()));
  }

  grpc::ClientContext& context() { return context_; }

  bool Read(v1::CaptureResponse* response) { return stream_ ? stream_->Read(response) : reader_->Read(response); }

  // Reads to the end, and keeps the last message.
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

  // Expects that another client's capture succeeds.
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
  // The stalled reader loses nothing.
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
  // The server may be at any point of the start of the call.
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
  // The time to drain is over before it begins.
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
  // From some moment on, calls are refused while the first one still runs.
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
