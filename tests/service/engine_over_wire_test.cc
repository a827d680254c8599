// Tests the engine itself behind the services: for every kind of capture, however it ends, rows are right, slabs come
// back, and other clients are served.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/server.h"
#include "tests/engine/fake_model.h"
#include "tests/service/relay.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

constexpr int kLength = 250;         // tokens in a sequence
constexpr int kManySequences = 800;  // too many for their rows to fit into socket buffers
constexpr uint32_t kPoison = 511;    // an id that only some tests send

uint32_t IdAt(int64_t sequence, int64_t position) { return static_cast<uint32_t>((sequence * 7 + position) % 500); }

enum class Kind { kCapture, kCaptureStream, kFeed };

// One call of any kind, over `sequences` sequences.
class Call {
 public:
  Call(const std::shared_ptr<grpc::Channel>& channel, Kind kind, int sequences,
       absl::Duration deadline = absl::InfiniteDuration(), int poisoned_sequence = -1)
      : stub_(v1::CaptureService::NewStub(channel)) {
    if (deadline != absl::InfiniteDuration()) context_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    v1::CaptureRequest request;
    request.add_hook_points("*");
    request.set_provenance(true);
    if (kind == Kind::kFeed) {
      // Each call has a feed of its own: a feed that was just cancelled may not have ended, and the call would join it
      // in the middle.
      static std::atomic<int> feeds = 0;
      request.mutable_feed()->set_name(absl::StrCat("feed", ++feeds));
      request.mutable_feed()->mutable_dataset()->set_name(poisoned_sequence < 0 ? "ids" : "poisoned");
      request.mutable_feed()->mutable_dataset()->set_sequence_length(kLength);
      request.mutable_feed()->mutable_dataset()->set_sequence_count(sequences);
      reader_ = stub_->Capture(&context_, request);
      return;
    }
    v1::TokenBatch tokens;
    for (int s = 0; s < sequences; ++s) {
      v1::TokenSequence& sequence = *tokens.add_sequences();
      for (int p = 0; p < kLength; ++p) sequence.add_ids(IdAt(s, p));
      if (s == poisoned_sequence) sequence.set_ids(3, kPoison);
    }
    if (kind == Kind::kCapture) {
      *request.mutable_tokens() = std::move(tokens);
      reader_ = stub_->Capture(&context_, request);
      return;
    }
    stream_ = stub_->CaptureStream(&context_);
    v1::CaptureStreamRequest message;
    *message.mutable_request() = request;
    stream_->Write(message);
    *message.mutable_tokens() = std::move(tokens);
    stream_->Write(message);
    stream_->WritesDone();
  }

  grpc::ClientContext& context() { return context_; }

  bool Read() {
    const bool ok = stream_ ? stream_->Read(&last_) : reader_->Read(&last_);
    if (ok && last_.has_chunk()) CheckRows(last_.chunk());
    return ok;
  }

  // Reads to the end, and keeps the last message.
  grpc::Status Finish() {
    while (Read()) {
    }
    return stream_ ? stream_->Finish() : reader_->Finish();
  }

  const v1::CaptureResponse& last() const { return last_; }
  // Returns the number of rows of the first hook point.
  int64_t rows() const { return rows_; }

 private:
  void CheckRows(const v1::ActivationChunk& chunk) {
    const int hook_point = chunk.hook_point() == "hook_embed" ? 0 : chunk.hook_point()[7] - '0' + 1;
    if (hook_point == 0) {
      EXPECT_EQ(chunk.first_row(), rows_);
      rows_ += chunk.rows();
    }
    std::vector<float> values(chunk.data().size() / sizeof(float));
    std::memcpy(values.data(), chunk.data().data(), chunk.data().size());
    ASSERT_EQ(values.size(), static_cast<size_t>(chunk.rows()) * chunk.width());
    for (int row = 0; row < chunk.rows(); ++row) {
      const int64_t index = chunk.first_row() + row;
      ASSERT_EQ(chunk.sequence(row), index / kLength);
      ASSERT_EQ(chunk.position(row), index % kLength);
      for (int j = 0; j < chunk.width(); ++j) {
        ASSERT_EQ(values[row * chunk.width() + j],
                  FakeModel::Value(hook_point, IdAt(index / kLength, index % kLength), index % kLength, j));
      }
    }
  }

  std::unique_ptr<v1::CaptureService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::CaptureResponse>> reader_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::CaptureStreamRequest, v1::CaptureResponse>> stream_;
  v1::CaptureResponse last_;
  int64_t rows_ = 0;
};

class EngineOverWire : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    options_.slab_bytes = 16 << 10;
    options_.slab_count = 64;
    options_.default_quotas.slabs = 64;  // all calls here are one client's
    options_.window_slabs = 8;
    std::vector<std::unique_ptr<const Dataset>> datasets;
    for (const char* name : {"ids", "poisoned"}) {
      const std::string path = absl::StrCat(::testing::TempDir(), "/engine_over_wire_", getpid(), ".bin");
      {
        std::ofstream file(path, std::ios::binary);
        for (int i = 0; i < kManySequences * kLength; ++i) {
          uint32_t id = IdAt(i / kLength, i % kLength);
          if (name == std::string("poisoned") && i == 700 * kLength) id = kPoison;
          file.put(static_cast<char>(id & 0xff)).put(static_cast<char>(id >> 8));
        }
      }
      auto dataset = Dataset::Open(name, path + ":uint16");
      ASSERT_TRUE(dataset.ok()) << dataset.status();
      datasets.push_back(*std::move(dataset));
      std::remove(path.c_str());
    }
    auto model = std::make_unique<FakeModel>();
    model_ = model.get();
    std::vector<ServedModel> models;
    models.push_back(std::move(model));
    auto engine = Engine::Create(options_, std::move(models), std::move(datasets));
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    ServerOptions server_options;
    server_options.listen = {"127.0.0.1:0"};
    auto server = Server::Start(server_options, engine_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::shared_ptr<grpc::Channel> NewChannel(int port) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(), arguments);
  }
  std::shared_ptr<grpc::Channel> NewChannel() { return NewChannel(server_->ports()[0]); }

  std::unique_ptr<Call> Open(absl::Duration deadline = absl::InfiniteDuration()) {
    return std::make_unique<Call>(NewChannel(), GetParam(), kManySequences, deadline);
  }

  void ExpectOthersServed() {
    Call other(NewChannel(), Kind::kCapture, 4);
    EXPECT_TRUE(other.Finish().ok());
    EXPECT_EQ(other.rows(), 4 * kLength);
  }

  // Reads `started`, then waits until half of the window holds rows that nobody reads; the other half may be too small
  // for the next row group. Only gRPC knows how much it takes from the window before it stops, so no event marks this
  // moment, and the loop polls the numbers of the metrics.
  void Stall(Call& call) {
    ASSERT_TRUE(call.Read());
    const int64_t window = call.last().started().window_bytes() / options_.slab_bytes;
    const absl::Time patience = absl::Now() + absl::Seconds(20);
    bool full = false;
    while (!full && absl::Now() < patience) {
      full = engine_->Snapshot().slabs_filled >= window / 2;
      std::this_thread::yield();
    }
    EXPECT_TRUE(full);
  }

  void ExpectEverySlabBack() {
    engine_->Drain(absl::Now() + absl::Seconds(20));
    const EngineSnapshot snapshot = engine_->Snapshot();
    EXPECT_EQ(snapshot.slabs_free, options_.slab_count);
    EXPECT_EQ(snapshot.captures_running, 0);
    EXPECT_EQ(snapshot.captures_queued, 0);
  }

  EngineOptions options_;
  FakeModel* model_ = nullptr;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, EngineOverWire, ::testing::Values(Kind::kCapture, Kind::kCaptureStream, Kind::kFeed),
                         [](const auto& info) {
                           return info.param == Kind::kCapture         ? "Capture"
                                  : info.param == Kind::kCaptureStream ? "CaptureStream"
                                                                       : "Feed";
                         });

TEST_P(EngineOverWire, EveryRowArrivesInOrderAndAsComputed) {
  auto call = Open();
  grpc::Status status = call->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(call->rows(), kManySequences * kLength);
  EXPECT_EQ(call->last().summary().stop_reason(), v1::STOP_REASON_SOURCE_ENDED);
  EXPECT_EQ(call->last().summary().hook_points(0).rows(), kManySequences * kLength);
  EXPECT_EQ(call->last().summary().sequences(), kManySequences);
  EXPECT_GT(call->last().summary().timing().wire_seconds(), 0);
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, CancelReturnsEverySlab) {
  for (int reads : {0, 1, 2, 30}) {
    auto call = Open();
    for (int i = 0; i < reads; ++i) ASSERT_TRUE(call->Read());
    call->context().TryCancel();
    EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  ExpectOthersServed();
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, ADeadlineReturnsEverySlab) {
  // The deadline passes during a forward pass, or before it.
  model_->Close();
  auto call = Open(absl::Milliseconds(200));
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  model_->Open();
  ExpectOthersServed();
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, ADisconnectReturnsEverySlab) {
  Relay relay(server_->ports()[0]);
  Call call(NewChannel(relay.port()), GetParam(), kManySequences);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(call.Read());
  relay.Drop();
  EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  ExpectOthersServed();
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, AStalledReaderDelaysNobodyAndLosesNothing) {
  auto stalled = Open();
  Stall(*stalled);
  for (int i = 0; i < 3; ++i) ExpectOthersServed();
  EXPECT_TRUE(stalled->Finish().ok());
  EXPECT_EQ(stalled->rows(), kManySequences * kLength);
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, ShutdownEndsReadersWithASummaryThatResumes) {
  auto call = Open();
  ASSERT_TRUE(call->Read());
  std::thread drain([this] { server_->Drain(absl::Now()); });
  grpc::Status status = call->Finish();
  drain.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  ASSERT_TRUE(call->last().has_summary());
  EXPECT_EQ(call->last().summary().stop_reason(), v1::STOP_REASON_SHUTTING_DOWN);
  EXPECT_EQ(call->last().summary().hook_points(0).rows(), call->rows());
  EXPECT_NE(call->last().summary().resume_token(), "");
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, ShutdownDoesNotWaitForReadersThatNeverRead) {
  auto call = Open();
  Stall(*call);
  server_->Drain(absl::Now());
  EXPECT_FALSE(call->Finish().ok());
  ExpectEverySlabBack();
}

TEST_P(EngineOverWire, AnErrorOfTheExecutorEndsItsCaptureAlone) {
  model_->FailOn(kPoison, absl::InternalError("the device caught fire"));
  Call failing(NewChannel(), GetParam(), kManySequences, absl::InfiniteDuration(), /*poisoned_sequence=*/700);
  Call other(NewChannel(), Kind::kCapture, 200);
  std::thread reader([&other] { EXPECT_TRUE(other.Finish().ok()); });
  grpc::Status status = failing.Finish();
  reader.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("the device caught fire"));
  ASSERT_TRUE(failing.last().has_summary());
  EXPECT_EQ(failing.last().summary().stop_reason(), v1::STOP_REASON_ERROR);
  EXPECT_EQ(other.rows(), 200 * kLength);
  ExpectEverySlabBack();
}

}  // namespace
}  // namespace hookline
