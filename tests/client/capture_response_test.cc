#include "client/cpp/capture_response.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/stubs/logging.h"
#include "google/protobuf/util/message_differencer.h"

namespace hookline::client {
namespace {

using google::protobuf::util::MessageDifferencer;

v1::CaptureResponse ChunkResponse() {
  v1::CaptureResponse response;
  v1::ActivationChunk& chunk = *response.mutable_chunk();
  chunk.set_hook_point("blocks.3.hook_resid_post");
  chunk.set_first_row(300);
  chunk.set_rows(7);
  chunk.set_width(3);
  chunk.set_dtype(v1::DTYPE_FLOAT32);
  for (int row = 0; row < 7; ++row) {
    chunk.add_sequence(1000 + row);
    chunk.add_position(row);
    chunk.add_token_id(256 + row);
  }
  chunk.set_resume_token("token\0with zeros", 16);
  std::string data(7 * 3 * 4, '\0');
  std::iota(data.begin(), data.end(), '\x01');
  chunk.set_data(data);
  return response;
}

// The message cut at `cuts` (ascending). Each slice has memory of exactly its own size, so that a sanitizer sees reads
// past its end. The slices live as long as this object.
class CutMessage {
 public:
  CutMessage(const std::string& encoded, const std::vector<size_t>& cuts) {
    size_t begin = 0;
    for (size_t i = 0; i <= cuts.size(); ++i) {
      const size_t end = i < cuts.size() ? cuts[i] : encoded.size();
      memory_.push_back(std::make_unique<char[]>(end - begin));
      std::copy(encoded.begin() + begin, encoded.begin() + end, memory_.back().get());
      slices_.emplace_back(memory_.back().get(), end - begin, grpc::Slice::STATIC_SLICE);
      begin = end;
    }
  }
  absl::StatusOr<CaptureEvent> Parse() const { return ParseCaptureResponse(slices_); }

 private:
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<grpc::Slice> slices_;
};

std::string DataOf(const Chunk& chunk) {
  std::string data;
  for (const auto& piece : chunk.pieces()) data.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  return data;
}

void ExpectSameChunk(const CaptureEvent& event, v1::ActivationChunk expected) {
  const auto* chunk = std::get_if<Chunk>(&event);
  ASSERT_NE(chunk, nullptr);
  EXPECT_EQ(DataOf(*chunk), expected.data());
  EXPECT_EQ(chunk->data_bytes(), static_cast<int64_t>(expected.data().size()));
  expected.clear_data();
  EXPECT_TRUE(MessageDifferencer::Equals(chunk->header(), expected));
}

TEST(ParseCaptureResponse, FindsAChunkWhereverItsMessageIsCutInThree) {
  const v1::CaptureResponse response = ChunkResponse();
  const std::string encoded = response.SerializeAsString();
  for (size_t first = 0; first <= encoded.size(); ++first) {
    for (size_t second = first; second <= encoded.size(); ++second) {
      CutMessage message(encoded, {first, second});
      absl::StatusOr<CaptureEvent> event = message.Parse();
      ASSERT_TRUE(event.ok()) << event.status() << " cut at " << first << " and " << second;
      ExpectSameChunk(*event, response.chunk());
    }
  }
}

TEST(ParseCaptureResponse, FindsAChunkInSlicesOfOneByte) {
  const v1::CaptureResponse response = ChunkResponse();
  const std::string encoded = response.SerializeAsString();
  std::vector<size_t> cuts(encoded.size());
  std::iota(cuts.begin(), cuts.end(), 1);
  absl::StatusOr<CaptureEvent> event = CutMessage(encoded, cuts).Parse();
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_TRUE(MessageDifferencer::Equals(std::get<Chunk>(*event).header(), [&] {
    v1::ActivationChunk header = response.chunk();
    header.clear_data();
    return header;
  }()));
}

TEST(ParseCaptureResponse, ReadsStartedAndSummary) {
  v1::CaptureResponse response;
  response.mutable_started()->set_fingerprint("abc");
  response.mutable_started()->add_hook_points()->set_hook_point("a");
  absl::StatusOr<CaptureEvent> event = CutMessage(response.SerializeAsString(), {3}).Parse();
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_TRUE(MessageDifferencer::Equals(std::get<v1::CaptureStarted>(*event), response.started()));

  response.mutable_summary()->set_sequences(12);
  event = CutMessage(response.SerializeAsString(), {1}).Parse();
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::get<v1::CaptureSummary>(*event).sequences(), 12);
}

TEST(ParseCaptureResponse, SkipsFieldsOfLaterVersions) {
  const v1::CaptureResponse response = ChunkResponse();
  std::string encoded_chunk = response.chunk().SerializeAsString();
  encoded_chunk.append("\xf8\x3f\x05", 3);              // field 1023, varint
  encoded_chunk.append("\xfa\x3f\x02hi", 5);            // field 1023, two bytes
  encoded_chunk.append("\xfd\x3f\x01\x02\x03\x04", 6);  // field 1023, fixed32
  std::string encoded("\x52\x01x", 3);                  // field 10, one byte
  encoded.push_back('\x12');
  encoded.push_back(static_cast<char>((encoded_chunk.size() & 0x7f) | 0x80));
  encoded.push_back(static_cast<char>(encoded_chunk.size() >> 7));
  encoded += encoded_chunk;
  absl::StatusOr<CaptureEvent> event = CutMessage(encoded, {}).Parse();
  ASSERT_TRUE(event.ok()) << event.status();
  const Chunk& chunk = std::get<Chunk>(*event);
  EXPECT_EQ(chunk.header().hook_point(), "blocks.3.hook_resid_post");
  EXPECT_EQ(DataOf(chunk), response.chunk().data());
}

TEST(ParseCaptureResponse, CopiesAnyRangeOfData) {
  const v1::CaptureResponse response = ChunkResponse();
  const std::string encoded = response.SerializeAsString();
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<size_t> cuts(5);
    for (size_t& cut : cuts) cut = random() % (encoded.size() + 1);
    std::sort(cuts.begin(), cuts.end());
    CutMessage message(encoded, cuts);
    absl::StatusOr<CaptureEvent> event = message.Parse();
    ASSERT_TRUE(event.ok()) << event.status();
    const Chunk& chunk = std::get<Chunk>(*event);
    const int64_t offset = random() % chunk.data_bytes();
    const int64_t bytes = random() % (chunk.data_bytes() - offset + 1);
    std::string copy(bytes, '\xff');
    chunk.CopyData(offset, bytes, copy.data());
    EXPECT_EQ(copy, response.chunk().data().substr(offset, bytes));
  }
}

TEST(Chunk, IsPlacedInACaptureOfWhichItIsAPart) {
  const CutMessage message(ChunkResponse().SerializeAsString(), {});
  absl::StatusOr<CaptureEvent> event = message.Parse();
  auto& chunk = std::get<Chunk>(*event);
  chunk.Place(/*first_row=*/5000, /*more_sequences=*/40);
  EXPECT_EQ(chunk.header().first_row(), 5000);
  EXPECT_EQ(chunk.header().sequence(6), 1046);
  EXPECT_EQ(chunk.header().resume_token(), "");
}

TEST(Chunk, KeepsItsFirstRowsWhereverTheyAreCut) {
  const std::string encoded = ChunkResponse().SerializeAsString();
  const std::string data = ChunkResponse().chunk().data();
  for (size_t cut = encoded.size() - data.size(); cut < encoded.size(); ++cut) {
    const CutMessage message(encoded, {cut});
    absl::StatusOr<CaptureEvent> event = message.Parse();
    auto& chunk = std::get<Chunk>(*event);
    chunk.KeepRows(2);
    EXPECT_EQ(DataOf(chunk), data.substr(0, 2 * 3 * 4));
    EXPECT_EQ(chunk.data_bytes(), 2 * 3 * 4);
    EXPECT_EQ(chunk.header().rows(), 2);
    EXPECT_EQ(chunk.header().token_id_size(), 2);
  }
}

TEST(ParseCaptureResponse, KeepsItsMemoryWhenMoved) {
  // Slices this small hold their bytes inside themselves.
  const std::string encoded = ChunkResponse().SerializeAsString();
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < encoded.size(); i += 10) slices.emplace_back(encoded.substr(i, 10));
  absl::StatusOr<CaptureEvent> event = ParseCaptureResponse(std::move(slices));
  ASSERT_TRUE(event.ok()) << event.status();
  CaptureEvent moved = *std::move(event);
  std::vector<CaptureEvent> elsewhere;
  elsewhere.push_back(std::move(moved));
  ExpectSameChunk(elsewhere[0], ChunkResponse().chunk());
}

TEST(ParseCaptureResponse, RefusesEveryTruncation) {
  const std::string encoded = ChunkResponse().SerializeAsString();
  for (size_t size = 0; size < encoded.size(); ++size) {
    absl::StatusOr<CaptureEvent> event = CutMessage(encoded.substr(0, size), {size / 2}).Parse();
    EXPECT_EQ(event.status().code(), absl::StatusCode::kInternal) << "first " << size << " bytes";
  }
}

TEST(ParseCaptureResponse, RefusesTwoKindsInOneMessage) {
  const std::string encoded = ChunkResponse().SerializeAsString();
  absl::StatusOr<CaptureEvent> event = CutMessage(encoded + encoded, {}).Parse();
  EXPECT_EQ(event.status().code(), absl::StatusCode::kInternal);
}

// Whatever became of a chunk's bytes, the parser must understand them as protobuf does.
TEST(ParseCaptureResponse, ReadsMutatedBytesAsProtobufDoesOrRefusesThem) {
  const std::string original = ChunkResponse().SerializeAsString();
  google::protobuf::LogSilencer silence;
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 100'000; ++round) {
    std::string encoded = original;
    const int mutations = 1 + random() % 4;
    for (int i = 0; i < mutations; ++i) {
      const size_t at = random() % encoded.size();
      switch (random() % 4) {
        case 0:
          encoded[at] = static_cast<char>(random());
          break;
        case 1:
          encoded[at] ^= static_cast<char>(1 << random() % 8);
          break;
        case 2:
          encoded.insert(at, 1, static_cast<char>(random()));
          break;
        case 3:
          encoded.erase(at, 1);
          break;
      }
    }
    CutMessage message(encoded, {random() % (encoded.size() + 1)});
    absl::StatusOr<CaptureEvent> event = message.Parse();
    if (!event.ok()) {
      ASSERT_EQ(event.status().code(), absl::StatusCode::kInternal);
      continue;
    }
    ++accepted;
    const auto* chunk = std::get_if<Chunk>(&*event);
    v1::CaptureResponse expected;
    if (chunk == nullptr || !expected.ParseFromString(encoded)) continue;
    ASSERT_EQ(DataOf(*chunk), expected.chunk().data()) << "round " << round;
    expected.mutable_chunk()->clear_data();
    ASSERT_EQ(chunk->header().SerializeAsString(), expected.chunk().SerializeAsString()) << "round " << round;
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace hookline::client
