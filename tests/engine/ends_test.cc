// However a capture from any source ends, its slabs come back, no thread is stuck, and others are unaffected.
#include <unistd.h>

#include <cstdio>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "tests/engine/dataset_fixture.h"

namespace hookline {
namespace {

enum class End { kCancel, kDisconnect, kStalledReader, kShutdown, kExecutorError, kOutOfMemory };
enum class From { kCapture, kCaptureStream, kFeed };

std::string Name(const ::testing::TestParamInfo<std::tuple<End, From>>& info) {
  static const char* const kEnds[] = {"Cancel",   "Disconnect",    "StalledReader",
                                      "Shutdown", "ExecutorError", "OutOfMemory"};
  static const char* const kSources[] = {"Capture", "CaptureStream", "Feed"};
  return std::string(kEnds[static_cast<int>(std::get<0>(info.param))]) + "Of" +
         kSources[static_cast<int>(std::get<1>(info.param))];
}

class EndsTest : public EngineTest, public ::testing::WithParamInterface<std::tuple<End, From>> {
 protected:
  static constexpr uint32_t kPoison = 511;
  static constexpr int kLength = 30;

  EndsTest() : path_("/tmp/hookline-ends-test-" + std::to_string(getpid()) + ".bin") {}
  ~EndsTest() override { std::remove(path_.c_str()); }

  // Starts the capture that ends badly: 40 sequences, of which the tenth holds the id that a test makes fail.
  std::unique_ptr<Collector> StartVictim(From from) {
    auto sequences = Sequences(std::vector<int>(40, kLength));
    sequences[9][3] = kPoison;
    CaptureRequest request = Request({"blocks.*"}, {});
    switch (from) {
      case From::kCapture:
        request.source = Tokens(sequences);
        break;
      case From::kCaptureStream: {
        request.source = StreamedSource{};
        auto collector = std::make_unique<Collector>(*engine_, request);
        (void)collector->capture().AddSequences(Tokens(sequences));
        collector->capture().FinishSource();
        return collector;
      }
      case From::kFeed:
        request.source = FeedSource{"feed", {"corpus", kLength, 0, 0, {}, {}}, 1, OnLag::kDetach};
        break;
    }
    return std::make_unique<Collector>(*engine_, request);
  }

  void CreateAll() {
    auto sequences = Sequences(std::vector<int>(40, kLength));
    sequences[9][3] = kPoison;
    WriteTokens(path_, sequences);
    Create(OpenCorpus(path_));
  }

  const std::string path_;
};

TEST_P(EndsTest, ReturnsEverySlabAndAffectsNobodyElse) {
  const auto [end, from] = GetParam();
  CreateAll();
  const auto sequences = Sequences(std::vector<int>(20, 25), 9);
  const CaptureRequest other_request = Request({"hook_embed", "blocks.1.hook_resid_post"}, sequences);
  if (end == End::kExecutorError) model_->FailOn(kPoison, absl::InternalError("a kernel failed"));
  if (end == End::kOutOfMemory) model_->FailOn(kPoison, absl::ResourceExhaustedError("out of device memory"));

  auto victim = StartVictim(from);
  ASSERT_TRUE(victim->status().ok()) << victim->status();
  Collector other(*engine_, other_request);
  ASSERT_TRUE(other.status().ok()) << other.status();
  switch (end) {
    case End::kCancel:
      victim->ReadChunks(2);
      victim->capture().Cancel();
      EXPECT_EQ(victim->capture().Next(), std::nullopt);
      break;
    case End::kDisconnect:
      victim->ReadChunks(2);
      victim->Release();
      break;
    case End::kStalledReader:
      break;  // it does not read until the others are done
    case End::kShutdown: {
      engine_->Drain(absl::Now());  // the victim's rows do not fit its window, so it cannot have ended before
      const Collected& got = victim->ReadAll();
      EXPECT_EQ(got.ended->stop_reason, StopReason::kShuttingDown);
      EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kUnavailable);
      EXPECT_FALSE(got.ended->resume_token.empty());
      other.ReadAll();
      EXPECT_EQ(Collector(*engine_, other_request).status().code(), absl::StatusCode::kUnavailable);
      return;
    }
    case End::kExecutorError:
    case End::kOutOfMemory: {
      const Collected& got = victim->ReadAll();
      EXPECT_EQ(got.ended->stop_reason, StopReason::kError);
      EXPECT_EQ(got.ended->status.code(),
                end == End::kExecutorError ? absl::StatusCode::kInternal : absl::StatusCode::kResourceExhausted);
      // After halving, only the sequence at fault has no rows; the rows of those before it have come.
      EXPECT_EQ(got.hook_points[0].values.size(), 9u * kLength);
      break;
    }
  }
  ExpectSameRows(other.ReadAll().hook_points, Expected(other_request, other_request.hook_points, sequences));
  Collector after(*engine_, other_request);
  ExpectSameRows(after.ReadAll().hook_points, Expected(other_request, other_request.hook_points, sequences));
  victim.reset();
}

INSTANTIATE_TEST_SUITE_P(, EndsTest,
                         ::testing::Combine(::testing::Values(End::kCancel, End::kDisconnect, End::kStalledReader,
                                                              End::kShutdown, End::kExecutorError, End::kOutOfMemory),
                                            ::testing::Values(From::kCapture, From::kCaptureStream, From::kFeed)),
                         Name);

TEST_F(EngineTest, ABatchThatDoesNotFitTheDeviceIsHalvedAndTriedAgain) {
  Create();
  model_->FitOnly(1);
  const auto sequences = Sequences({16, 16, 16, 16, 16});
  const CaptureRequest request = Request({"hook_embed"}, sequences);
  Collector collector(*engine_, request);
  ExpectSameRows(collector.ReadAll().hook_points, Expected(request, {"hook_embed"}, sequences));
}

// The sums of half a batch would differ.
TEST_F(EngineTest, ADeterministicBatchThatDoesNotFitTheDeviceIsNotHalved) {
  Create();
  model_->FitOnly(1);
  CaptureRequest request = Request({"hook_embed"}, Sequences({16, 16}));
  request.deterministic = true;
  Collector collector(*engine_, request);
  EXPECT_EQ(collector.ReadAll().ended->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(model_->passes().size(), 1u);
}

TEST_F(EngineTest, CancelDuringAForwardPassDiscardsWhatItBrings) {
  Create();
  model_->Close();
  Collector collector(*engine_, Request({"blocks.*"}, Sequences({50, 50})));
  model_->WaitUntilBlocked();
  collector.capture().Cancel();
  model_->Open();
}

// 64 clients of every kind run at once; some of them go away. Rows are compared with the plain reference.
TEST_F(EngineTest, SixtyFourClientsGetExactlyTheirRows) {
  options_.slab_count = 96;  // not enough windows for all of them
  Create();
  std::vector<std::thread> clients;
  for (int client = 0; client < 64; ++client) {
    clients.emplace_back([this, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      std::vector<int> lengths;
      for (int i = 0, count = 1 + static_cast<int>(random() % 12); i < count; ++i) {
        lengths.push_back(1 + static_cast<int>(random() % (i == 0 ? 200 : 60)));
      }
      const auto sequences = Sequences(lengths, static_cast<uint32_t>(random()));
      std::vector<std::string> names;
      for (const char* name :
           {"hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"}) {
        if (random() % 2 == 0) names.push_back(name);
      }
      if (names.empty()) names.push_back("hook_embed");
      CaptureRequest request = Request(names, sequences);
      request.max_activations = 1 + random() % 400;
      if (random() % 2 == 0) request.max_activations_by_hook_point[names[0]] = 1 + random() % 100;
      if (random() % 2 == 0) request.selection.skip_first = random() % 5;
      if (random() % 3 == 0) request.selection.sample_rows = 1 + random() % 10;
      if (random() % 3 == 0) request.selection.exclude_token_ids = {sequences[0][0]};
      request.deterministic = random() % 3 == 0;
      const bool streams = random() % 3 == 0;
      if (streams) request.source = StreamedSource{};
      Collector collector(*engine_, request, "client");
      ASSERT_TRUE(collector.status().ok()) << collector.status();
      if (streams) {
        for (const auto& ids : sequences) ASSERT_TRUE(collector.capture().AddSequences(Tokens({ids})).ok());
        collector.capture().FinishSource();
      }
      if (random() % 5 == 0) {
        collector.ReadChunks(static_cast<int>(random() % 4));
        return;  // the client goes away
      }
      const Collected& got = collector.ReadAll();
      EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
      ExpectSameRows(got.hook_points, Expected(request, names, sequences));
    });
  }
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace hookline
