// Tests the promises of reading a recording back as a capture.
#include "server/recorder/replay.h"

#include <deque>
#include <functional>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/shuffled_order.h"
#include "server/recording/catalog.h"
#include "tests/recording/rows_source.h"
#include "tests/support/fake_disk.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

const std::vector<RecordedHookPoint> kPoints = {{"blocks.0.hook_resid_post", 500, 100}, {"hook_embed", 300, 60}};
const RowsSource kSource(100, 10, 20);

// Stands for the disk's thread: steps run only when a test calls for them.
class ReplayTest : public ::testing::Test {
 protected:
  void SetUp() override { Open({0, 0, 64 << 10}); }

  void Open(const CatalogOptions& options) {
    catalog_.reset();
    auto opened = Catalog::Open(disk_.root(), options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    catalog_ = *std::move(opened);
    if (catalog_->Get("a").ok()) return;
    auto writer = catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32));
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(kSource.SendTo(**writer).ok());
    ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
  }

  absl::StatusOr<std::shared_ptr<Capture>> Start(const ReplayRequest& request) {
    auto reader = catalog_->OpenReader("a");
    if (!reader.ok()) return reader.status();
    return StartReplay(
        *std::move(reader), request,
        {[this](std::function<void()> step) { steps_.push_back(std::move(step)); }, [this] { ++ready_; }});
  }

  static ReplayRequest SmallMessages() {
    ReplayRequest request;
    request.max_message_bytes = 16 << 10;
    request.provenance = true;
    return request;
  }

  // Runs the next step. Returns false if there was none.
  bool DoStep() {
    if (steps_.empty()) return false;
    const std::function<void()> step = std::move(steps_.front());
    steps_.pop_front();
    step();
    return true;
  }

  // Returns the next event, and runs the steps that it needs.
  CaptureEvent Next(Capture& capture) {
    while (true) {
      std::optional<CaptureEvent> event = capture.Next();
      if (event.has_value()) return *std::move(event);
      const int before = ready_;
      while (ready_ == before) {
        if (!DoStep()) {
          ADD_FAILURE() << "the capture neither has an event nor works at one";
          return CaptureEnded();
        }
      }
    }
  }

  // Takes all events. Returns the last one, and the values by hook point in `rows`.
  CaptureEnded ReadAll(Capture& capture, std::map<int, std::string>* rows, std::vector<int64_t>* sequence = nullptr) {
    while (true) {
      CaptureEvent event = Next(capture);
      if (auto* ended = std::get_if<CaptureEnded>(&event)) return *std::move(ended);
      if (std::holds_alternative<CaptureStarted>(event)) continue;
      const auto& chunk = std::get<Chunk>(event);
      for (const SlabSpan& span : chunk.data) (*rows)[chunk.hook_point].append(span.data(), span.data() + span.bytes);
      if (sequence != nullptr && chunk.hook_point == 0) {
        sequence->insert(sequence->end(), chunk.provenance->sequence.begin(), chunk.provenance->sequence.end());
      }
    }
  }

  std::string Wanted(int hook_point, int64_t rows) {
    const auto manifest = *catalog_->Get("a");
    std::string wanted;
    for (int64_t row = 0; row < rows; ++row) wanted += RowsSource::Row(*manifest, hook_point, row);
    return wanted;
  }

  FakeDisk disk_;
  std::unique_ptr<Catalog> catalog_;
  std::deque<std::function<void()>> steps_;
  int ready_ = 0;
};

TEST_F(ReplayTest, EveryRowComesInOrderWithItsProvenance) {
  auto capture = Start(SmallMessages());
  ASSERT_TRUE(capture.ok()) << capture.status();
  std::map<int, std::string> rows;
  std::vector<int64_t> sequence;
  const CaptureEnded ended = ReadAll(**capture, &rows, &sequence);
  EXPECT_TRUE(ended.status.ok()) << ended.status;
  EXPECT_EQ(rows[0], Wanted(0, 100));
  EXPECT_EQ(rows[1], Wanted(1, 60));
  ASSERT_EQ(sequence.size(), 100u);
  for (int64_t row = 0; row < 100; ++row) EXPECT_EQ(sequence[row], RowsSource::Sequence(row));
}

TEST_F(ReplayTest, ShuffledItIsTheSameRowsAlsoAfterAResumeAtAnyChunk) {
  ReplayRequest request = SmallMessages();
  request.shuffle_seed = 7;
  request.row_count = 60;
  std::map<int, std::string> whole;
  ReadAll(**Start(request), &whole);
  const ShuffledOrder order(60, 7);
  const auto manifest = *catalog_->Get("a");
  std::string wanted;
  for (int64_t i = 0; i < 60; ++i) wanted += RowsSource::Row(*manifest, 0, order[i]);
  EXPECT_EQ(whole[0], wanted);
  for (int chunks = 0; chunks < 8; ++chunks) {
    std::map<int, std::string> rows;
    {
      auto capture = Start(request);
      for (int i = 0; i <= chunks; ++i) {
        CaptureEvent event = Next(**capture);
        if (auto* started = std::get_if<CaptureStarted>(&event)) request.resume_token = started->resume_token;
        auto* chunk = std::get_if<Chunk>(&event);
        if (chunk == nullptr) continue;
        rows[chunk->hook_point].append(chunk->data[0].data(), chunk->data[0].data() + chunk->data[0].bytes);
        request.resume_token = chunk->resume_token;
      }
    }
    ReadAll(**Start(request), &rows);
    EXPECT_EQ(rows, whole) << chunks;
    request.resume_token.clear();
  }
}

TEST_F(ReplayTest, ADamagedTokenOrOneOfAnotherReadIsRefused) {
  ReplayRequest request = SmallMessages();
  std::string token;
  {
    auto capture = Start(request);
    ASSERT_TRUE(capture.ok()) << capture.status();
    for (int i = 0; i < 4; ++i) {
      CaptureEvent event = Next(**capture);
      if (auto* chunk = std::get_if<Chunk>(&event)) token = chunk->resume_token;
    }
  }
  request.resume_token = token;
  EXPECT_TRUE(Start(request).ok());
  for (size_t i = 0; i < token.size(); ++i) {
    request.resume_token = token;
    request.resume_token[i] ^= 4;
    EXPECT_THAT(std::string(Start(request).status().message()), HasSubstr("resume_token: ")) << i;
  }
  request.resume_token = token;
  request.shuffle_seed = 7;
  request.row_count = 60;
  EXPECT_THAT(std::string(Start(request).status().message()), HasSubstr("belongs to another source"));
  request = SmallMessages();
  request.resume_token = token;
  request.max_activations = 50;
  EXPECT_THAT(std::string(Start(request).status().message()), HasSubstr("belongs to another request"));
  const ResumePosition begin;
  request.resume_token = EncodeResumeToken({1, 2, 3}, begin);
  EXPECT_THAT(std::string(Start(request).status().message()), HasSubstr("belongs to another model"));
}

TEST_F(ReplayTest, ADamagedShardEndsItWithDataLossAfterTheRowsBeforeIt) {
  const auto manifest = *catalog_->Get("a");
  ASSERT_GT(manifest->shards.size(), 2u);
  Open({0, 0, 64 << 10});
  const ShardInfo& shard = manifest->shards[1];
  const std::string path = "a/" + shard.file;
  disk_.Overwrite(path, shard.bytes - 1, std::string(1, static_cast<char>(disk_.Files().at(path).back() ^ 1)));
  auto capture = Start(SmallMessages());
  std::map<int, std::string> rows;
  const CaptureEnded ended = ReadAll(**capture, &rows);
  EXPECT_EQ(ended.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(ended.status.message()), HasSubstr(shard.file));
  EXPECT_EQ(ended.stop_reason, StopReason::kError);
  EXPECT_EQ(rows[0], Wanted(0, static_cast<int64_t>(rows[0].size()) / 2000));
  EXPECT_LE(static_cast<int64_t>(rows[0].size()), shard.first_row * 2000);
  EXPECT_EQ(ended.hook_points[0].rows, static_cast<int64_t>(rows[0].size()) / 2000);
}

TEST_F(ReplayTest, AClientThatKeepsItsMessagesHoldsTwoOfThem) {
  auto capture = Start(SmallMessages());
  std::vector<CaptureEvent> held;
  held.push_back(Next(**capture));
  for (int i = 0; i < 2; ++i) held.push_back(Next(**capture));
  while (DoStep()) {
  }
  EXPECT_EQ((*capture)->Next(), std::nullopt);
  EXPECT_FALSE(DoStep());
  held.erase(held.begin() + 1);
  const int before = ready_;
  while (DoStep()) {
  }
  EXPECT_EQ(ready_, before + 1);
  EXPECT_NE((*capture)->Next(), std::nullopt);
}

TEST_F(ReplayTest, ReadsTogetherHoldNoMoreThanTheLimitAndGiveItBack) {
  Open({0, 0, 64 << 10, /*read_bytes=*/100 << 10});
  std::vector<std::shared_ptr<Capture>> reads;
  absl::Status status;
  while (status.ok() && reads.size() < 100) {
    auto capture = Start(SmallMessages());
    status = capture.status();
    if (status.ok()) reads.push_back(*std::move(capture));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--recordings-read-bytes"));
  EXPECT_GE(reads.size(), 2u);
  EXPECT_LE(reads.size(), 4u);
  Next(*reads[0]);
  reads.clear();
  while (DoStep()) {
  }
  EXPECT_TRUE(Start(SmallMessages()).ok());
}

TEST_F(ReplayTest, NothingIsCalledAfterACancelAndWhatWasReadIsGivenBack) {
  auto capture = Start(SmallMessages());
  Next(**capture);
  EXPECT_EQ((*capture)->Next(), std::nullopt);
  const int before = ready_;
  (*capture)->Cancel();
  while (DoStep()) {
  }
  EXPECT_EQ(ready_, before);
  EXPECT_EQ((*capture)->Next(), std::nullopt);
  capture->reset();
  EXPECT_EQ(disk_.opened_files(), 0);
}

}  // namespace
}  // namespace hookline
