// Tests scores through a whole engine, with a small real model.
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "tests/evaluation/running_scores.h"

namespace hookline {
namespace {

using ::testing::SizeIs;

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
  // Its first pass has run, and perhaps a second one; the rest waits, since 4 of its sequences fill a batch with
  // a variant.
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
