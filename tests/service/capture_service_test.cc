#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/service/peer_address.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using CaptureServiceTest = ServiceFixture;

struct Received {
  std::vector<v1::CaptureResponse> messages;
  grpc::Status status;

  const v1::CaptureSummary& summary() const { return messages.back().summary(); }
};

template <typename Stream>
Received ReadAll(Stream& stream) {
  Received received;
  v1::CaptureResponse message;
  while (stream.Read(&message)) received.messages.push_back(message);
  received.status = stream.Finish();
  return received;
}

Received RunCapture(v1::CaptureService::Stub& stub, const v1::CaptureRequest& request) {
  grpc::ClientContext context;
  auto stream = stub.Capture(&context, request);
  return ReadAll(*stream);
}

std::vector<float> FloatsOf(const v1::ActivationChunk& chunk) {
  std::vector<float> values(chunk.data().size() / sizeof(float));
  std::memcpy(values.data(), chunk.data().data(), values.size() * sizeof(float));
  return values;
}

TEST_F(CaptureServiceTest, StreamsStartedThenChunksThenTheSummary) {
  Serve();
  Received received = RunCapture(*stub(), Request(2000, {"a", "b"}));
  ASSERT_TRUE(received.status.ok()) << received.status.error_message();
  ASSERT_GE(received.messages.size(), 4u);
  ASSERT_TRUE(received.messages.front().has_started());
  EXPECT_EQ(received.messages.front().started().hook_points_size(), 2);
  ASSERT_TRUE(received.messages.back().has_summary());
  EXPECT_EQ(received.summary().stop_reason(), v1::STOP_REASON_BUDGET);
  EXPECT_EQ(received.summary().hook_points(1).hook_point(), "b");
  EXPECT_GT(received.summary().timing().wire_seconds(), 0);

  std::map<std::string, int64_t> next_row;
  for (size_t i = 1; i + 1 < received.messages.size(); ++i) {
    ASSERT_TRUE(received.messages[i].has_chunk());
    const v1::ActivationChunk& chunk = received.messages[i].chunk();
    EXPECT_LE(received.messages[i].ByteSizeLong(), size_t{1} << 20);
    ASSERT_EQ(chunk.first_row(), next_row[chunk.hook_point()]);
    ASSERT_EQ(chunk.width(), 768);
    const std::vector<float> values = FloatsOf(chunk);
    ASSERT_EQ(values.size(), chunk.rows() * 768u);
    for (int row = 0; row < chunk.rows(); ++row) {
      ASSERT_EQ(values[row * 768], static_cast<float>(chunk.first_row() + row));
      ASSERT_EQ(values[row * 768 + 512], static_cast<float>(chunk.first_row() + row) + 0.5F);
    }
    next_row[chunk.hook_point()] += chunk.rows();
  }
  EXPECT_EQ(next_row["a"], 2000);
  EXPECT_EQ(next_row["b"], 2000);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(CaptureServiceTest, CarriesProvenanceAndValuesWhereAskedFor) {
  Serve();
  v1::CaptureRequest request = Request(3);
  request.set_provenance(true);
  request.set_encoding(v1::ENCODING_VALUES);
  Received received = RunCapture(*stub(), request);
  ASSERT_EQ(received.messages.size(), 3u);
  const v1::ActivationChunk& chunk = received.messages[1].chunk();
  EXPECT_EQ(chunk.values_size(), 3 * 768);
  EXPECT_EQ(chunk.values(768), 1.0F);
  EXPECT_EQ(chunk.sequence_size(), 3);
  EXPECT_EQ(chunk.position(2), 2);
  EXPECT_EQ(chunk.token_id(2), 2u);
  EXPECT_EQ(chunk.resume_token(), "after 3");
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(CaptureServiceTest, RefusesWithTheFieldInTheDetails) {
  Serve();
  Received received = RunCapture(*stub(), Request(1, {"a", "hook_embde"}));
  EXPECT_TRUE(received.messages.empty());
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(received.status.error_message(), HasSubstr("hook_points[1]"));
  EXPECT_THAT(received.status.error_details(), HasSubstr("google.rpc.BadRequest"));

  v1::CaptureRequest request = Request(1);
  request.set_dtype(static_cast<v1::Dtype>(77));
  received = RunCapture(*stub(), request);
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(received.status.error_message(), AllOf(HasSubstr("77"), HasSubstr("DTYPE_BFLOAT16")));

  request = Request(1);
  request.clear_tokens();
  received = RunCapture(*stub(), request);
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(CaptureServiceTest, RefusesARequestAboveTheLimitOfMessages) {
  ServerOptions options;
  options.max_request_bytes = 1 << 20;
  Serve({}, options);
  v1::CaptureRequest request = Request(1);
  request.mutable_tokens()->mutable_sequences(0)->mutable_ids()->Resize(2 << 20, 1);
  Received received = RunCapture(*stub(), request);
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(RunCapture(*stub(), Request(1)).status.ok());
}

TEST_F(CaptureServiceTest, SendsTheSummaryBeforeTheErrorThatEndsACapture) {
  Serve();
  engine_->FailAfter(1000, absl::InternalError("the device caught fire"));
  Received received = RunCapture(*stub(), Request(kEndless));
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(received.status.error_message(), "the device caught fire");
  ASSERT_TRUE(received.messages.back().has_summary());
  EXPECT_EQ(received.summary().stop_reason(), v1::STOP_REASON_ERROR);
  EXPECT_EQ(received.summary().resume_token(), "end");
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(CaptureServiceTest, StreamsRowsForSequencesThatAreStreamedIn) {
  Serve();
  grpc::ClientContext context;
  auto capture_stub = stub();
  auto stream = capture_stub->CaptureStream(&context);
  ASSERT_TRUE(stream->Write(FirstMessage()));
  v1::CaptureResponse message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_TRUE(message.has_started());
  // Rows of the first sequences arrive before the last sequences are sent.
  ASSERT_TRUE(stream->Write(Tokens(5)));
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_EQ(message.chunk().rows(), 5);
  // These are many times as many tokens as the engine has room for.
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(stream->Write(Tokens(50)));
  stream->WritesDone();
  Received received = ReadAll(*stream);
  ASSERT_TRUE(received.status.ok()) << received.status.error_message();
  EXPECT_EQ(received.summary().stop_reason(), v1::STOP_REASON_SOURCE_ENDED);
  EXPECT_EQ(received.summary().hook_points(0).rows(), 5 + 200 * 50);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(CaptureServiceTest, StopsReadingWhileTheEngineHasNoRoom) {
  Serve();
  grpc::ClientContext context;
  auto capture_stub = stub();
  auto stream = capture_stub->CaptureStream(&context);
  ASSERT_TRUE(stream->Write(FirstMessage()));
  // Nobody reads, so the window fills up, the engine has no room, and gRPC keeps what the client writes.
  std::thread writer([&] {
    for (int i = 0; i < 40; ++i) {
      if (!stream->Write(Tokens(1000))) return;
    }
    stream->WritesDone();
  });
  EXPECT_TRUE(engine_->WaitUntilFilled(8));
  Received received = ReadAll(*stream);
  writer.join();
  EXPECT_TRUE(received.status.ok()) << received.status.error_message();
  EXPECT_EQ(received.summary().hook_points(0).rows(), 40 * 1000);
  EXPECT_EQ(engine_->sequences_without_room(), 0);
}

TEST_F(CaptureServiceTest, NamesAWrongFirstMessageOfAStream) {
  Serve();
  auto capture_stub = stub();
  {
    grpc::ClientContext context;
    auto stream = capture_stub->CaptureStream(&context);
    stream->Write(Tokens(1));
    grpc::Status status = ReadAll(*stream).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr("request: must be the first"), HasSubstr("`tokens`")));
  }
  {
    grpc::ClientContext context;
    auto stream = capture_stub->CaptureStream(&context);
    v1::CaptureStreamRequest message;
    *message.mutable_request() = Request(1);
    stream->Write(message);
    grpc::Status status = ReadAll(*stream).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("request.tokens"));
  }
  {
    grpc::ClientContext context;
    auto stream = capture_stub->CaptureStream(&context);
    stream->Write({});
    grpc::Status status = ReadAll(*stream).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("neither"));
  }
  {
    grpc::ClientContext context;
    auto stream = capture_stub->CaptureStream(&context);
    stream->WritesDone();
    grpc::Status status = ReadAll(*stream).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("the stream ended"));
  }
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(CaptureServiceTest, ServesWhatCameBeforeAWrongLaterMessage) {
  Serve();
  grpc::ClientContext context;
  auto capture_stub = stub();
  auto stream = capture_stub->CaptureStream(&context);
  ASSERT_TRUE(stream->Write(FirstMessage()));
  ASSERT_TRUE(stream->Write(Tokens(5)));
  stream->Write(FirstMessage());
  Received received = ReadAll(*stream);
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(received.status.error_message(), HasSubstr("first message only"));
  ASSERT_TRUE(received.messages.back().has_summary());
  EXPECT_EQ(received.summary().stop_reason(), v1::STOP_REASON_ERROR);
  EXPECT_EQ(received.summary().hook_points(0).rows(), 5);
}

TEST_F(CaptureServiceTest, EndsAStreamWhoseSequencesAreBad) {
  Serve();
  grpc::ClientContext context;
  auto capture_stub = stub();
  auto stream = capture_stub->CaptureStream(&context);
  ASSERT_TRUE(stream->Write(FirstMessage()));
  v1::CaptureStreamRequest message;
  message.mutable_tokens();
  stream->Write(message);
  Received received = ReadAll(*stream);
  EXPECT_EQ(received.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(received.status.error_message(), HasSubstr("tokens.sequences"));
  EXPECT_TRUE(received.messages.back().has_summary());
}

TEST_F(CaptureServiceTest, EstimatesWithoutRunning) {
  Serve();
  grpc::ClientContext context;
  v1::EstimateCaptureRequest request;
  *request.mutable_capture() = Request(10, {"a", "b"});
  v1::EstimateCaptureResponse response;
  grpc::Status status = stub()->EstimateCapture(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.hook_points_size(), 2);
  EXPECT_EQ(response.hook_points(1).hook_point(), "b");
  EXPECT_EQ(response.hook_points(1).rows(), 10);
  EXPECT_EQ(response.hook_points(1).bytes(), 10 * 768 * 4);
  EXPECT_EQ(response.bytes(), 2 * 10 * 768 * 4);
  EXPECT_EQ(response.sequences(), 3);
  EXPECT_EQ(response.tokens(), 30);
  EXPECT_EQ(response.seconds(), 1.5);

  grpc::ClientContext second;
  request.mutable_capture()->add_hook_points("c");
  status = stub()->EstimateCapture(&second, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_details(), HasSubstr("hook_points[2]"));
}

TEST_F(CaptureServiceTest, ServesManyCapturesAtATime) {
  FakeEngineOptions options;
  options.slab_bytes = 64 << 10;
  options.slab_count = 16 * 4;
  options.window_slabs = 4;
  Serve(std::move(options));
  std::vector<std::thread> clients;
  std::vector<int64_t> rows(16);
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([this, i, &rows] {
      Received received = RunCapture(*stub(), Request(1000 + i));
      if (received.status.ok()) rows[i] = received.summary().hook_points(0).rows();
    });
  }
  for (std::thread& client : clients) client.join();
  for (int i = 0; i < 16; ++i) EXPECT_EQ(rows[i], 1000 + i);
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
}

TEST_F(CaptureServiceTest, TellsTheEngineTheClientsAddress) {
  Serve();
  ASSERT_TRUE(RunCapture(*stub(), Request(1)).status.ok());
  EXPECT_EQ(engine_->last_address(), "127.0.0.1");
}

TEST(PeerAddress, IsTheAddressWithoutThePort) {
  EXPECT_EQ(PeerAddress("ipv4:10.0.0.7:41234"), "10.0.0.7");
  EXPECT_EQ(PeerAddress("ipv6:%5Bfe80::1%5D:41234"), "fe80::1");
  EXPECT_EQ(PeerAddress("ipv6:[::1]:41234"), "::1");
  EXPECT_EQ(PeerAddress("ipv6:%5B::ffff:10.0.0.7%5D:1"), "10.0.0.7");
  EXPECT_EQ(PeerAddress("ipv6:%5Bfe80::1%25eth0%5D:41234"), "fe80::1%eth0");
  EXPECT_EQ(PeerAddress("unix:/run/hookline.sock"), "unix");
  EXPECT_EQ(PeerAddress("unix:"), "unix");
  EXPECT_EQ(PeerAddress("unknown"), "unknown");
}

}  // namespace
}  // namespace hookline
