// Tests values in memory that a client shares: the promises of SHARED_MEMORY.md, with a client written from it and with
// the C++ client.
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "client/cpp/client.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "tests/service/shared_memory_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kWidth = 768;

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

// The values of a slab are far less than a message may hold, or about as much.
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

// The other order would wake the engine before the client, and the client's rows would be late.
TEST_F(SharedMemoryTest, AMessageLeavesBeforeItsSlabComesBack) {
  // The engine, which outlives this function, shares these.
  const auto has_chunk = std::make_shared<absl::Notification>();
  const auto returned_too_soon = std::make_shared<std::atomic<int>>(0);
  server_.reset();
  FakeEngineOptions engine;
  engine.on_slab_return = [has_chunk, returned_too_soon] {
    if (!has_chunk->WaitForNotificationWithTimeout(absl::Seconds(20))) ++*returned_too_soon;
  };
  Serve(std::move(engine));
  auto client = Client(8 * kMebibyte);
  auto call = client->Capture(Request(100));
  while (true) {
    auto event = call->Next();
    ASSERT_TRUE(event.ok()) << event.status();
    if (!event->has_value()) break;
    if (auto* chunk = std::get_if<client::Chunk>(&**event)) {
      EXPECT_TRUE(chunk->header().has_data_offset());
      has_chunk->Notify();
    }
  }
  EXPECT_TRUE(engine_->WaitUntilSlabsAreBack());
  EXPECT_EQ(*returned_too_soon, 0);
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
  EXPECT_GT(chunks_sent(key, Request(1000)), 0);  // no memory was offered yet
  EXPECT_GT(chunks_sent("nonsense", Request(1000)), 0);
  {
    Offer offer(port());
    ASSERT_TRUE(offer.Make(MemoryFile(4 * kMebibyte), 4 * kMebibyte));
    v1::CaptureRequest values = Request(1000);
    values.set_encoding(v1::ENCODING_VALUES);
    EXPECT_GT(chunks_sent(key, values), 0);
    EXPECT_GT(chunks_sent(key, Request(1000)), 0);  // each offer serves one call
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
