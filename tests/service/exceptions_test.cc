// An exception on one of gRPC's threads ends its call and nothing else.
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "hookline/v1/model_service.grpc.pb.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

class ExceptionsTest : public ServiceFixture {
 protected:
  void SetUp() override { Serve(); }

  void ExpectInternal(const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("thrown by the fake engine"));
  }

  grpc::Status Capture() {
    grpc::ClientContext context;
    auto reader = stub()->Capture(&context, Request(20'000));
    v1::CaptureResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }
};

TEST_F(ExceptionsTest, EndACallThatDoesNotStart) {
  engine_->Throw(FakeEngine::Throws::kAtOnce);
  ExpectInternal(Capture());
  {
    grpc::ClientContext context;
    auto stream = stub()->CaptureStream(&context);
    stream->Write(FirstMessage());
    v1::CaptureResponse response;
    EXPECT_FALSE(stream->Read(&response));
    ExpectInternal(stream->Finish());
  }
  {
    grpc::ClientContext context;
    v1::EstimateCaptureRequest request;
    *request.mutable_capture() = Request(1);
    v1::EstimateCaptureResponse response;
    ExpectInternal(stub()->EstimateCapture(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::Model response;
    ExpectInternal(v1::ModelService::NewStub(channel_)->GetModel(&context, {}, &response));
  }
  engine_->Throw(FakeEngine::Throws::kNever);
  EXPECT_TRUE(Capture().ok());
}

TEST_F(ExceptionsTest, EndACallThatRunsAndGiveItsSlabsBack) {
  engine_->Throw(FakeEngine::Throws::kAfterTheFirstEvent);
  ExpectInternal(Capture());
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  engine_->Throw(FakeEngine::Throws::kNever);
  EXPECT_TRUE(Capture().ok());
}

TEST_F(ExceptionsTest, LetTheServerEnd) {
  engine_->Throw(FakeEngine::Throws::kAfterTheFirstEvent);
  ExpectInternal(Capture());
  server_->Drain(absl::Now());
}

}  // namespace
}  // namespace hookline
