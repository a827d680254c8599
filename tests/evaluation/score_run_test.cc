// Scores through a whole engine, with a small real model.
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/engine/engine.h"
#include "tests/support/random_decoder.h"

namespace hookline {
namespace {

using ::testing::SizeIs;

constexpr absl::Duration kLong = absl::Seconds(60);

std::unique_ptr<Engine> MakeEngine(int64_t max_batch_tokens = 64, EngineOptions options = {}) {
  options.slab_bytes = 65536;
  options.slab_count = 32;
  options.max_batch_tokens = max_batch_tokens;
  options.max_captures = 12;  // of which one client may have a quarter
  std::vector<ServedModel> models;
  models.push_back(RandomDecoder({}));
  auto engine = Engine::Create(options, std::move(models), /*datasets=*/{});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

TokenBatch Tokens(int sequences, int length) {
  TokenBatch tokens;
  for (int i = 0; i < sequences; ++i) {
    for (int t = 0; t < length; ++t) tokens.Append(static_cast<uint32_t>((7 * i + 3 * t) % 257));
    tokens.EndSequence();
  }
  return tokens;
}

ScoreRequest Request(int sequences, int length) {
  ScoreRequest request;
  request.source = Tokens(sequences, length);
  InterventionRequest zero;
  zero.hook_point = "blocks.1.hook_mlp_out";
  zero.operation = ZeroRows{};
  request.variants = {{"zero", {zero}}};
  request.kl = request.per_token_loss = true;
  return request;
}

// Takes the events of one scoring.
class Reader {
 public:
  absl::Status Start(Engine& engine, ScoreRequest request) {
    auto plan = engine.PlanScore(std::move(request));
    if (!plan.ok()) return plan.status();
    auto scoring = engine.StartScore(*std::move(plan), "test", [this] {
      absl::MutexLock lock(&mutex_);
      ready_ = true;
    });
    if (!scoring.ok()) return scoring.status();
    scoring_ = *std::move(scoring);
    return absl::OkStatus();
  }

  // None if nothing came in a long time.
  std::optional<ScoreEvent> Next() {
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        ready_ = false;
      }
      if (std::optional<ScoreEvent> event = scoring_->Next()) return event;
      absl::MutexLock lock(&mutex_);
      if (!mutex_.AwaitWithTimeout(absl::Condition(&ready_), kLong)) return std::nullopt;
    }
  }

  ScoreEnded ReadAll() {
    while (std::optional<ScoreEvent> event = Next()) {
      if (auto* ended = std::get_if<ScoreEnded>(&*event)) return std::move(*ended);
      if (auto* scored = std::get_if<ScoredSequence>(&*event)) scores.push_back(std::move(*scored));
    }
    ADD_FAILURE() << "no end";
    return {};
  }

  void Leave() { scoring_.reset(); }

  std::vector<ScoredSequence> scores;

 private:
  absl::Mutex mutex_;
  bool ready_ = false;
  std::shared_ptr<Scoring> scoring_;
};

// The float32 bytes of a deterministic capture of sequences that fill several batches.
std::string DeterministicRows(Engine& engine) {
  CaptureRequest request;
  request.hook_points = {"blocks.1.hook_resid_post"};
  request.source = Tokens(40, 16);
  request.deterministic = true;
  auto plan = engine.Plan(std::move(request));
  EXPECT_TRUE(plan.ok()) << plan.status();
  absl::Mutex mutex;
  bool ready = false;
  CaptureCallbacks callbacks;
  callbacks.on_ready = [&] {
    absl::MutexLock lock(&mutex);
    ready = true;
  };
  callbacks.on_source_room = [] {};
  auto capture = engine.Start(*std::move(plan), "other", std::move(callbacks));
  EXPECT_TRUE(capture.ok()) << capture.status();
  std::string rows;
  while (true) {
    {
      absl::MutexLock lock(&mutex);
      ready = false;
    }
    std::optional<CaptureEvent> event = (*capture)->Next();
    if (!event.has_value()) {
      absl::MutexLock lock(&mutex);
      if (!mutex.AwaitWithTimeout(absl::Condition(&ready), kLong)) break;
      continue;
    }
    if (std::holds_alternative<CaptureEnded>(*event)) return rows;
    if (const auto* chunk = std::get_if<Chunk>(&*event)) {
      for (const SlabSpan& span : chunk->data)
        rows.append(reinterpret_cast<const char*>(span.data()), static_cast<size_t>(span.bytes));
    }
  }
  ADD_FAILURE() << "no end";
  return rows;
}

TEST(ScoreRunTest, EverySequenceIsScoredUnderEveryVariantAndCountedInTheTotals) {
  const auto engine = MakeEngine();
  Reader reader;
  ASSERT_TRUE(reader.Start(*engine, Request(20, 16)).ok());
  const ScoreEnded ended = reader.ReadAll();
  EXPECT_TRUE(ended.status.ok()) << ended.status;
  ASSERT_THAT(reader.scores, SizeIs(40));
  double loss = 0;
  for (size_t i = 0; i < reader.scores.size(); ++i) {
    EXPECT_EQ(reader.scores[i].sequence, static_cast<int64_t>(i / 2));
    EXPECT_EQ(reader.scores[i].variant, i % 2);
    EXPECT_THAT(reader.scores[i].score.token_loss, SizeIs(15));
    if (i % 2 == 1) loss += reader.scores[i].score.loss_sum;
  }
  EXPECT_EQ(ended.sequences, 20);
  EXPECT_EQ(ended.tokens, 320);
  ASSERT_THAT(ended.variants, SizeIs(2));
  EXPECT_NEAR(ended.variants[1].MeanLoss(), loss / 300, 1e-9);
  EXPECT_EQ(ended.variants[1].replaced[0].rows, 320);
}

TEST(ScoreRunTest, ZeroingIsLossRecoveredOfNothingAndTheCleanPassOfAll) {
  const auto engine = MakeEngine();
  ScoreRequest request = Request(4, 16);
  InterventionRequest same = request.variants[0].interventions[0];
  same.operation = ScaleRows{1};
  request.variants.push_back({"same", {same}});
  request.loss_recovered = true;
  const auto plan = engine->PlanScore(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  Reader reader;
  ASSERT_TRUE(reader.Start(*engine, std::move(request)).ok());
  const ScoreEnded ended = reader.ReadAll();
  EXPECT_THAT(reader.scores, SizeIs(12));
  EXPECT_NEAR(*ended.LossRecovered(*plan, 0), 0, 1e-4);
  EXPECT_NEAR(*ended.LossRecovered(*plan, 1), 1, 1e-4);
}

TEST(ScoreRunTest, CapturesBesideScoresGetTheSameBits) {
  const auto engine = MakeEngine();
  const std::string quiet = DeterministicRows(*engine);
  ASSERT_FALSE(quiet.empty());
  Reader first, second;
  ASSERT_TRUE(first.Start(*engine, Request(200, 16)).ok());
  ASSERT_TRUE(second.Start(*engine, Request(200, 30)).ok());
  std::thread reading([&] { EXPECT_TRUE(first.ReadAll().status.ok()); });
  std::thread reading_too([&] { EXPECT_TRUE(second.ReadAll().status.ok()); });
  EXPECT_TRUE(DeterministicRows(*engine) == quiet);
  reading.join();
  reading_too.join();
}

TEST(ScoreRunTest, ScoresDoNotDependOnWhoElseIsConnected) {
  const auto engine = MakeEngine();
  Reader alone;
  ASSERT_TRUE(alone.Start(*engine, Request(50, 16)).ok());
  alone.ReadAll();
  alone.Leave();
  Reader beside, other;
  ASSERT_TRUE(other.Start(*engine, Request(200, 30)).ok());
  std::thread reading([&] { other.ReadAll(); });
  ASSERT_TRUE(beside.Start(*engine, Request(50, 16)).ok());
  beside.ReadAll();
  reading.join();
  ASSERT_EQ(beside.scores.size(), alone.scores.size());
  for (size_t i = 0; i < alone.scores.size(); ++i) {
    EXPECT_EQ(beside.scores[i].score.token_loss, alone.scores[i].score.token_loss);
  }
}

TEST(ScoreRunTest, AClientThatDoesNotReadStopsItsOwnWorkAlone) {
  const auto engine = MakeEngine();
  Reader idle, busy;
  ASSERT_TRUE(idle.Start(*engine, Request(1000, 16)).ok());
  ASSERT_TRUE(busy.Start(*engine, Request(100, 16)).ok());
  EXPECT_TRUE(busy.ReadAll().status.ok());
  // Its first pass ran and perhaps a second one, and the rest waits: 4 of its sequences fill a batch with a variant.
  int64_t scores = 0;
  std::optional<ScoreEvent> event = idle.Next();
  ASSERT_TRUE(std::holds_alternative<ScoreStarted>(*event));
  EXPECT_TRUE(idle.ReadAll().status.ok());
  for (const ScoredSequence& one : idle.scores) scores += one.variant == 0 ? 1 : 0;
  EXPECT_EQ(scores, 1000);
}

TEST(ScoreRunTest, ScoringsCountAgainstTheLimitOfCapturesUntilTheirClientLeaves) {
  const auto engine = MakeEngine();
  Reader readers[4];
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(readers[i].Start(*engine, Request(10, 16)).ok());
  EXPECT_EQ(readers[3].Start(*engine, Request(10, 16)).code(), absl::StatusCode::kResourceExhausted);
  readers[0].Leave();
  EXPECT_TRUE(readers[3].Start(*engine, Request(10, 16)).ok());
}

TEST(ScoreRunTest, WhatInterventionsTakeCountsAmongTheTokensThatAreHeld) {
  EngineOptions options;
  options.max_request_tokens = options.max_held_tokens = 1000;
  const auto engine = MakeEngine(64, options);
  Reader reader;
  EXPECT_TRUE(reader.Start(*engine, Request(1, 4)).ok());
  ScoreRequest request = Request(1, 4);
  std::vector<InterventionRequest>& interventions = request.variants[0].interventions;
  interventions.resize(100, interventions[0]);
  Reader refused;
  const absl::Status status = refused.Start(*engine, std::move(request));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("--max-held-tokens"));
}

TEST(ScoreRunTest, ADrainedEngineEndsScoringsWithUnavailable) {
  const auto engine = MakeEngine();
  Reader reader;
  ASSERT_TRUE(reader.Start(*engine, Request(100, 16)).ok());
  engine->Drain(absl::Now());
  const ScoreEnded ended = reader.ReadAll();
  EXPECT_EQ(ended.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(reader.Start(*engine, Request(1, 4)).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace hookline
