#include "server/service/wire/capture_response_encoder.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "grpcpp/support/slice.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/capture/message_size.h"
#include "server/service/wire/chunk_values.h"
#include "tests/service/slabs.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;

std::string Flatten(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

v1::CaptureResponse Parse(const grpc::ByteBuffer& message) {
  v1::CaptureResponse response;
  EXPECT_TRUE(response.ParseFromString(Flatten(message)));
  return response;
}

CaptureStarted StartedWith(std::string hook_point, int64_t width, Dtype dtype) {
  CaptureStarted started;
  started.hook_points.push_back({std::move(hook_point), width, /*max_activations=*/1 << 20, /*clipped=*/false});
  started.dtype = dtype;
  return started;
}

// A chunk of random size, and the bytes of its values.
struct RandomCase {
  CaptureStarted started;
  Chunk chunk;
  std::string data;
};

class Randomness {
 public:
  explicit Randomness(uint32_t seed) : engine_(seed) {}

  int64_t Between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }

  std::string Bytes(int64_t count) {
    std::string bytes(static_cast<size_t>(count), '\0');
    for (char& byte : bytes) byte = static_cast<char>(Between(0, 255));
    return bytes;
  }

  // Returns a small number, or one at an end of the type's range.
  template <typename T>
  T Extreme() {
    return Between(0, 1) == 0 ? static_cast<T>(Between(0, 200)) : std::numeric_limits<T>::max();
  }

  RandomCase Case(CountedSlabs& slabs) {
    const auto dtype = static_cast<Dtype>(Between(0, 4));
    RandomCase random{StartedWith(std::string(Between(1, 300), 'h'), Between(1, 400), dtype), {}, {}};
    const int64_t width = random.started.hook_points[0].width;
    random.started.top_k = Between(0, 1) == 0 ? 0 : Between(1, width);
    Chunk& chunk = random.chunk;
    chunk.first_row = Extreme<int64_t>();
    chunk.rows = Between(1, 50);
    chunk.resume_token = Bytes(Between(0, kMaxResumeTokenBytes));
    if (Between(0, 1) == 1) {
      auto provenance = std::make_shared<Provenance>();
      // A chunk that is cut by a budget has fewer rows than its group's provenance.
      for (int64_t row = 0; row < chunk.rows + Between(0, 3); ++row) {
        provenance->sequence.push_back(Extreme<int64_t>());
        provenance->position.push_back(Extreme<int32_t>());
        provenance->token_id.push_back(Extreme<uint32_t>());
      }
      while (static_cast<int64_t>(provenance->sequence.size()) < chunk.rows) {
        provenance->sequence.push_back(0);
        provenance->position.push_back(0);
        provenance->token_id.push_back(0);
      }
      chunk.provenance = provenance;
    }
    random.data = Bytes(chunk.rows * RowLayout{dtype, width, random.started.top_k}.bytes());
    for (size_t at = 0; at < random.data.size();) {
      const size_t bytes = Between(0, static_cast<int64_t>(random.data.size() - at));
      chunk.data.push_back(slabs.Copy(random.data.substr(at, bytes)));
      at += bytes;
    }
    return random;
  }

 private:
  std::mt19937 engine_;
};

// Encodes the chunk with protobuf, field by field as the proto describes it.
v1::CaptureResponse Expected(const RandomCase& random) {
  v1::CaptureResponse response;
  v1::ActivationChunk& chunk = *response.mutable_chunk();
  chunk.set_hook_point(random.started.hook_points[0].name);
  chunk.set_first_row(random.chunk.first_row);
  chunk.set_rows(static_cast<int32_t>(random.chunk.rows));
  chunk.set_width(static_cast<int32_t>(random.started.hook_points[0].width));
  chunk.set_dtype(static_cast<v1::Dtype>(1 + static_cast<int>(random.started.dtype)));
  for (int64_t row = 0; random.chunk.provenance != nullptr && row < random.chunk.rows; ++row) {
    chunk.add_sequence(random.chunk.provenance->sequence[row]);
    chunk.add_position(random.chunk.provenance->position[row]);
    chunk.add_token_id(random.chunk.provenance->token_id[row]);
  }
  chunk.set_resume_token(random.chunk.resume_token);
  chunk.set_top_k(static_cast<int32_t>(random.started.top_k));
  return response;
}

TEST(CaptureResponseEncoder, WritesChunksByteForByteAsProtobufDoes) {
  Randomness randomness(1);
  CountedSlabs slabs;
  for (int i = 0; i < 300; ++i) {
    RandomCase random = randomness.Case(slabs);
    v1::CaptureResponse expected = Expected(random);
    expected.mutable_chunk()->set_data(random.data);
    ASSERT_EQ(Flatten(EncodeChunk(random.started, Encoding::kBytes, random.chunk)), expected.SerializeAsString())
        << "case " << i << ": " << expected.chunk().rows() << " rows of " << expected.chunk().width();
  }
}

TEST(CaptureResponseEncoder, NeverTakesMoreThanTheEngineReckonsWith) {
  Randomness randomness(2);
  CountedSlabs slabs;
  for (int i = 0; i < 300; ++i) {
    RandomCase random = randomness.Case(slabs);
    for (Encoding encoding : {Encoding::kBytes, Encoding::kValues}) {
      MessageShape shape;
      shape.hook_point_name_bytes = static_cast<int64_t>(random.started.hook_points[0].name.size());
      shape.layout = {random.started.dtype, random.started.hook_points[0].width, random.started.top_k};
      shape.encoding = encoding;
      shape.provenance = random.chunk.provenance != nullptr;
      const auto bytes = static_cast<int64_t>(EncodeChunk(random.started, encoding, random.chunk).Length());
      EXPECT_LE(bytes, MessageHeaderBytes(shape) + random.chunk.rows * MessageRowBytes(shape)) << "case " << i;
    }
  }
}

TEST(CaptureResponseEncoder, FillsTheLargestMessageWithoutPassingIt) {
  CountedSlabs slabs;
  for (int64_t max_message_bytes : {int64_t{16} << 10, int64_t{1} << 20, int64_t{4} << 20, int64_t{16} << 20}) {
    for (bool provenance : {false, true}) {
      CaptureStarted started = StartedWith("blocks.11.hook_resid_post", 768, Dtype::kFloat32);
      MessageShape shape{25, {Dtype::kFloat32, 768}, Encoding::kBytes, provenance};
      Chunk chunk;
      const int64_t rows = MaxMessageRows(shape, max_message_bytes);
      chunk.rows = rows;
      chunk.first_row = std::numeric_limits<int64_t>::max();
      chunk.resume_token = std::string(kMaxResumeTokenBytes, 't');
      if (provenance) {
        auto columns = std::make_shared<Provenance>();
        columns->sequence.assign(chunk.rows, std::numeric_limits<int64_t>::max());
        columns->position.assign(chunk.rows, std::numeric_limits<int32_t>::max());
        columns->token_id.assign(chunk.rows, std::numeric_limits<uint32_t>::max());
        chunk.provenance = columns;
      }
      const int64_t data_bytes = chunk.rows * 768 * 4;
      chunk.data.push_back({slabs.Take(data_bytes), 0, data_bytes});
      const auto bytes = static_cast<int64_t>(EncodeChunk(started, Encoding::kBytes, chunk).Length());
      EXPECT_LE(bytes, max_message_bytes);
      // The message lacks less than a row, the bound of the header, and a byte for each row, since an index is a
      // positive number of 9 bytes.
      EXPECT_GT(bytes, max_message_bytes - MessageRowBytes(shape) - MessageHeaderBytes(shape) - rows);
    }
  }
}

TEST(CaptureResponseEncoder, SendsTheSlabsOwnMemoryAndReturnsItWithTheLastSlice) {
  CountedSlabs slabs;
  Chunk chunk;
  chunk.rows = 2;
  chunk.data = {slabs.Copy(std::string(4096, 'a')), slabs.Copy(std::string(4096, 'b'))};
  const uint8_t* first = chunk.data[0].data();
  const uint8_t* second = chunk.data[1].data();
  auto message = std::make_unique<grpc::ByteBuffer>(
      EncodeChunk(StartedWith("hook_embed", 1024, Dtype::kFloat32), Encoding::kBytes, chunk));
  chunk.data.clear();

  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(message->Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 3u);
  EXPECT_EQ(slices[1].begin(), first);
  EXPECT_EQ(slices[2].begin(), second);
  message.reset();
  EXPECT_EQ(slabs.out(), 2);
  grpc::Slice part = slices[2].sub(1, 1000);
  slices.clear();
  EXPECT_EQ(slabs.out(), 1);
  part = grpc::Slice();
  EXPECT_EQ(slabs.out(), 0);
}

TEST(CaptureResponseEncoder, WritesValuesAsNumbersAndHoldsNoSlab) {
  CountedSlabs slabs;
  const std::vector<float> values = {1.5F, -2.25F, 0.0F, 1e30F, -0.0F, 3.0F};
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  Chunk chunk;
  chunk.rows = 2;
  // The data is cut inside a value.
  chunk.data = {slabs.Copy(bytes.substr(0, 7)), slabs.Copy(bytes.substr(7))};
  grpc::ByteBuffer message = EncodeChunk(StartedWith("hook_embed", 3, Dtype::kFloat32), Encoding::kValues, chunk);
  chunk.data.clear();
  EXPECT_EQ(slabs.out(), 0);
  v1::CaptureResponse response = Parse(message);
  EXPECT_THAT(response.chunk().values(), ElementsAre(1.5F, -2.25F, 0.0F, 1e30F, -0.0F, 3.0F));
  EXPECT_EQ(response.chunk().data(), "");
  EXPECT_EQ(response.chunk().rows(), 2);
  EXPECT_EQ(response.chunk().width(), 3);
}

std::vector<float> AsFloats(const std::vector<uint16_t>& bits, Dtype dtype) {
  v1::ActivationChunk chunk;
  AppendAsNumbers({reinterpret_cast<const char*>(bits.data()), bits.size() * sizeof(uint16_t)},
                  {dtype, static_cast<int64_t>(bits.size())}, &chunk);
  return {chunk.values().begin(), chunk.values().end()};
}

TEST(Values, OfHalfAndBrainFloatsAreExact) {
  // The numbers are 1, -2, the largest, the smallest normal and subnormal ones, and minus zero.
  EXPECT_THAT(AsFloats({0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x8000}, Dtype::kFloat16),
              ElementsAre(1.0F, -2.0F, 65504.0F, std::ldexp(1.0F, -14), std::ldexp(1.0F, -24), -0.0F));
  EXPECT_THAT(AsFloats({0x3f80, 0xc000, 0x4049, 0x8000}, Dtype::kBFloat16), ElementsAre(1.0F, -2.0F, 3.140625F, -0.0F));
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBFloat16}) {
    const bool half = dtype == Dtype::kFloat16;
    std::vector<float> special =
        AsFloats({static_cast<uint16_t>(half ? 0x7c00 : 0x7f80), static_cast<uint16_t>(half ? 0xfc00 : 0xff80),
                  static_cast<uint16_t>(half ? 0x7e00 : 0x7fc0)},
                 dtype);
    EXPECT_EQ(special[0], std::numeric_limits<float>::infinity());
    EXPECT_EQ(special[1], -std::numeric_limits<float>::infinity());
    EXPECT_TRUE(std::isnan(special[2]));
  }
}

TEST(CaptureResponseEncoder, TellsWhatWasGranted) {
  CaptureStarted started = StartedWith("hook_embed", 64, Dtype::kBFloat16);
  started.hook_points[0].clipped = true;
  started.model = "demo";
  started.fingerprint = "0123456789abcdef0123456789abcdef";
  started.max_message_bytes = 1 << 20;
  started.next_sequence = 7;
  started.window_bytes = 8 << 20;
  started.resume_token = "token";
  v1::CaptureResponse expected;
  ASSERT_TRUE(expected.ParseFromString(Flatten(EncodeStarted(started))));
  const v1::CaptureStarted& out = expected.started();
  EXPECT_EQ(out.model(), "demo");
  EXPECT_EQ(out.fingerprint(), started.fingerprint);
  ASSERT_EQ(out.hook_points_size(), 1);
  EXPECT_EQ(out.hook_points(0).hook_point(), "hook_embed");
  EXPECT_EQ(out.hook_points(0).width(), 64);
  EXPECT_EQ(out.hook_points(0).max_activations(), 1 << 20);
  EXPECT_TRUE(out.hook_points(0).clipped());
  EXPECT_EQ(out.dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(out.max_message_bytes(), 1 << 20);
  EXPECT_EQ(out.next_sequence(), 7);
  EXPECT_EQ(out.window_bytes(), 8 << 20);
  EXPECT_EQ(out.resume_token(), "token");
}

TEST(CaptureResponseEncoder, TellsHowItEnded) {
  CaptureStarted started = StartedWith("hook_embed", 64, Dtype::kFloat32);
  CaptureEnded ended;
  ended.stop_reason = StopReason::kShuttingDown;
  ended.hook_points.resize(1);
  HookPointSummary& sums = ended.hook_points[0];
  sums.rows = 5;
  sums.statistics_rows = 4;
  sums.mean_row_norm = 1.5;
  sums.mean = 0.25;
  sums.rms = 2.5;
  sums.nan_count = 3;
  sums.infinity_count = 2;
  ended.sequences = 11;
  ended.tokens = 12;
  ended.batches = 13;
  ended.mean_batch_fill = 0.5;
  ended.total_time = absl::Seconds(5);
  ended.queue_time = absl::Seconds(4);
  ended.forward_time = absl::Seconds(3);
  ended.copy_time = absl::Seconds(2);
  ended.wire_time = absl::Seconds(1);
  ended.resume_token = "end";
  const v1::CaptureResponse response = Parse(EncodeSummary(started, ended));
  const v1::CaptureSummary& out = response.summary();
  EXPECT_EQ(out.stop_reason(), v1::STOP_REASON_SHUTTING_DOWN);
  ASSERT_EQ(out.hook_points_size(), 1);
  EXPECT_EQ(out.hook_points(0).hook_point(), "hook_embed");
  EXPECT_EQ(out.hook_points(0).rows(), 5);
  EXPECT_EQ(out.hook_points(0).statistics_rows(), 4);
  EXPECT_EQ(out.hook_points(0).mean_row_norm(), 1.5);
  EXPECT_EQ(out.hook_points(0).mean(), 0.25);
  EXPECT_EQ(out.hook_points(0).rms(), 2.5);
  EXPECT_EQ(out.hook_points(0).nan_count(), 3);
  EXPECT_EQ(out.hook_points(0).infinity_count(), 2);
  EXPECT_EQ(out.sequences(), 11);
  EXPECT_EQ(out.tokens(), 12);
  EXPECT_EQ(out.batches(), 13);
  EXPECT_EQ(out.mean_batch_fill(), 0.5);
  EXPECT_EQ(out.timing().total_seconds(), 5);
  EXPECT_EQ(out.timing().queue_seconds(), 4);
  EXPECT_EQ(out.timing().forward_seconds(), 3);
  EXPECT_EQ(out.timing().copy_seconds(), 2);
  EXPECT_EQ(out.timing().wire_seconds(), 1);
  EXPECT_EQ(out.resume_token(), "end");
}

}  // namespace
}  // namespace hookline
