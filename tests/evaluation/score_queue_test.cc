#include "server/engine/score_queue.h"

#include <map>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "server/engine/score_run.h"

namespace hookline {
namespace {

std::shared_ptr<ScoreRun> MakeRun() {
  return std::make_shared<ScoreRun>(std::make_shared<const ScorePlan>(), /*on_ready=*/nullptr);
}

TEST(ScoreQueueTest, WithoutFlowsAScoringGoesAtOnce) {
  ScoreQueue queue(/*max_paused=*/1000);
  const std::shared_ptr<ScoreRun> run = MakeRun();
  queue.Add(CaptureId{1}, run);
  EXPECT_EQ(queue.Take(/*flows=*/0).run, nullptr);
  queue.SetWaiting(CaptureId{1}, 100, /*paused=*/0);
  EXPECT_EQ(queue.Take(/*flows=*/0).run, run);
  // The run has no next pass until it asks again.
  EXPECT_EQ(queue.Take(/*flows=*/0).run, nullptr);
}

TEST(ScoreQueueTest, AScoringGetsAsManyTokensAsEachFlow) {
  ScoreQueue queue(/*max_paused=*/1000);
  queue.Add(CaptureId{1}, MakeRun());
  int64_t scored = 0, flows = 0;
  while (flows < 100000) {
    queue.SetWaiting(CaptureId{1}, 700, /*paused=*/0);
    if (queue.Take(/*flows=*/3).run != nullptr) {
      scored += 700;
    } else {
      queue.FlowsRun(/*flows=*/3, /*tokens=*/1000);
      flows += 1000;
    }
  }
  EXPECT_NEAR(static_cast<double>(scored), static_cast<double>(flows) / 3, 1500);
}

TEST(ScoreQueueTest, AmongScoringsTheOneThatRanTheFewestTokensGoesFirst) {
  ScoreQueue queue(/*max_paused=*/1000);
  queue.Add(CaptureId{1}, MakeRun());
  queue.Add(CaptureId{2}, MakeRun());
  std::map<CaptureId, int64_t> ran;
  for (int i = 0; i < 300; ++i) {
    queue.SetWaiting(CaptureId{1}, 1000, /*paused=*/0);
    queue.SetWaiting(CaptureId{2}, 100, /*paused=*/0);
    const CaptureId turn = queue.Take(/*flows=*/0).id;
    ran[turn] += turn == CaptureId{1} ? 1000 : 100;
  }
  EXPECT_NEAR(static_cast<double>(ran[CaptureId{1}]), static_cast<double>(ran[CaptureId{2}]), 1100);
}

TEST(ScoreQueueTest, OneThatComesLaterDoesNotCatchUp) {
  ScoreQueue queue(/*max_paused=*/1000);
  queue.Add(CaptureId{1}, MakeRun());
  for (int i = 0; i < 10; ++i) {
    queue.SetWaiting(CaptureId{1}, 1000, /*paused=*/0);
    queue.Take(/*flows=*/0);
  }
  queue.Add(CaptureId{2}, MakeRun());
  int first = 0;
  for (int i = 0; i < 10; ++i) {
    queue.SetWaiting(CaptureId{1}, 1000, /*paused=*/0);
    queue.SetWaiting(CaptureId{2}, 1000, /*paused=*/0);
    first += queue.Take(/*flows=*/0).id == CaptureId{1} ? 1 : 0;
  }
  EXPECT_EQ(first, 5);
}

TEST(ScoreQueueTest, CreditIsNotSavedUpWhileNoScoringWaits) {
  ScoreQueue queue(/*max_paused=*/1000);
  queue.Add(CaptureId{1}, MakeRun());
  for (int i = 0; i < 100; ++i) queue.FlowsRun(/*flows=*/1, /*tokens=*/1000);
  queue.SetWaiting(CaptureId{1}, 10, /*paused=*/0);
  EXPECT_EQ(queue.Take(/*flows=*/1).run, nullptr);
  queue.FlowsRun(/*flows=*/1, /*tokens=*/1000);
  EXPECT_NE(queue.Take(/*flows=*/1).run, nullptr);
}

TEST(ScoreQueueTest, PassesThatPauseHaveRoomOnlyAndAreNotOvertakenByTheirKind) {
  ScoreQueue queue(/*max_paused=*/1000);
  for (int i = 1; i <= 4; ++i) queue.Add(CaptureId{i}, MakeRun());
  queue.SetWaiting(CaptureId{1}, 100, /*paused=*/700);
  EXPECT_EQ(queue.Take(/*flows=*/0).paused, 700);
  queue.SetWaiting(CaptureId{2}, 10, /*paused=*/400);
  EXPECT_EQ(queue.Take(/*flows=*/0).run, nullptr);
  // The third scoring would fit, but the second one has waited longer; a pass that needs no room goes on.
  queue.SetWaiting(CaptureId{3}, 10, /*paused=*/100);
  EXPECT_EQ(queue.Take(/*flows=*/0).run, nullptr);
  queue.SetWaiting(CaptureId{4}, 10, /*paused=*/0);
  EXPECT_EQ(queue.Take(/*flows=*/0).id, CaptureId{4});
  queue.GiveBack(700);
  EXPECT_EQ(queue.Take(/*flows=*/0).id, CaptureId{2});
  EXPECT_EQ(queue.Take(/*flows=*/0).id, CaptureId{3});
}

TEST(ScoreQueueTest, APassThatHasPausedGoesOnWhereItBegan) {
  ScoreQueue queue(/*max_paused=*/1000);
  queue.Add(CaptureId{1}, MakeRun());
  queue.SetWaiting(CaptureId{1}, 10, /*paused=*/100);
  EXPECT_FALSE(queue.IsPinned(CaptureId{1}));
  EXPECT_EQ(queue.Take(/*flows=*/0, /*executor=*/1).id, CaptureId{1});
  EXPECT_TRUE(queue.IsPinned(CaptureId{1}));
  EXPECT_EQ(queue.PinnedTo(1), std::vector<CaptureId>{CaptureId{1}});
  queue.SetWaiting(CaptureId{1}, 10, /*paused=*/0);
  EXPECT_EQ(queue.Take(/*flows=*/0, /*executor=*/0).run, nullptr);
  EXPECT_EQ(queue.Take(/*flows=*/0, /*executor=*/1).id, CaptureId{1});
  // The next pass may begin anywhere.
  queue.SetWaiting(CaptureId{1}, 10, /*paused=*/100);
  EXPECT_EQ(queue.PinnedTo(1), std::vector<CaptureId>());
  EXPECT_EQ(queue.Take(/*flows=*/0, /*executor=*/0).id, CaptureId{1});
}

TEST(ScoreQueueTest, WhatIsRemovedHasNoTurn) {
  ScoreQueue queue(/*max_paused=*/1000);
  const std::shared_ptr<ScoreRun> run = MakeRun();
  queue.Add(CaptureId{1}, run);
  queue.SetWaiting(CaptureId{1}, 10, /*paused=*/0);
  EXPECT_EQ(queue.Remove(CaptureId{1}), run);
  EXPECT_EQ(queue.Take(/*flows=*/0).run, nullptr);
  EXPECT_EQ(queue.Remove(CaptureId{1}), nullptr);
}

}  // namespace
}  // namespace hookline
