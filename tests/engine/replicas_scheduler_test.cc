// Tests replicas in the scheduler by itself: which work a batch on another executor keeps back, and which it does not.
#include "tests/engine/scheduler_fixture.h"

namespace hookline {
namespace {

class ReplicasSchedulerTest : public SchedulerTest {
 protected:
  ReplicasSchedulerTest() {
    replicas_ = 2;
    Create();
  }
  static TokenBatch FullBatches(size_t count) {
    return Tokens(std::vector<std::vector<uint32_t>>(count, std::vector<uint32_t>(64, 1)));
  }
};

TEST_F(ReplicasSchedulerTest, ACapturesNextBatchIsFormedWhenTheRowsOfTheLastOneArePlanned) {
  Admit(SchedulerTest::Plan(FullBatches(3)));
  std::optional<Batch> first = NextBatch(0);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(NextBatch(1), std::nullopt) << "its rows begin where the first batch's end";
  first->members[0].cursor.next_row = 64;
  Plan(*first, 0);
  const std::optional<Batch> second = NextBatch(1);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->members[0].cursor.next_row, 64);
  EXPECT_EQ(second->items[0].sequence.count, 1);
}

TEST_F(ReplicasSchedulerTest, OtherCapturesRunWhileRowsArePlanned) {
  Admit(SchedulerTest::Plan(FullBatches(2)), "one");
  Admit(SchedulerTest::Plan(FullBatches(2)), "two");
  const std::optional<Batch> first = NextBatch(0), second = NextBatch(1);
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_NE(first->members[0].recipient.capture, second->members[0].recipient.capture);
}

TEST_F(ReplicasSchedulerTest, RowsAreHandedOverInTheOrderOfBatches) {
  const auto capture = Admit(SchedulerTest::Plan(FullBatches(2)));
  std::optional<Batch> first = NextBatch(0);
  ASSERT_TRUE(first.has_value());
  Run(*first, 0);
  std::optional<Batch> second = NextBatch(1);
  ASSERT_TRUE(second.has_value());
  Run(*second, 1);
  EXPECT_EQ(scheduler_->TurnOf(capture.id, second->members[0].turn), Turn::kWait);
  EXPECT_EQ(scheduler_->TurnOf(capture.id, first->members[0].turn), Turn::kNow);
  Deliver(*first);
  EXPECT_EQ(resumed_, std::vector<int>{1}) << "the executor whose turn it is now";
  EXPECT_EQ(scheduler_->TurnOf(capture.id, second->members[0].turn), Turn::kNow);
  Deliver(*second);
  EXPECT_TRUE(HasEnded(capture));
}

TEST_F(ReplicasSchedulerTest, NoRowsFollowAGap) {
  const auto capture = Admit(SchedulerTest::Plan(FullBatches(2)));
  std::optional<Batch> first = NextBatch(0);
  ASSERT_TRUE(first.has_value());
  Run(*first, 0);
  std::optional<Batch> second = NextBatch(1);
  ASSERT_TRUE(second.has_value());
  Run(*second, 1);
  scheduler_->Failed(capture.id, absl::InternalError("a copy failed"));
  scheduler_->Delivered(capture.id, {first->members[0].turn, absl::ZeroDuration(), /*has_gap=*/true});
  EXPECT_EQ(scheduler_->TurnOf(capture.id, second->members[0].turn), Turn::kNever);
  EXPECT_FALSE(HasEnded(capture));
  Deliver(*second);
  EXPECT_TRUE(HasEnded(capture));
}

TEST_F(ReplicasSchedulerTest, EachExecutorComputesABatchWhileRowsOfOthersWaitForSlabs) {
  const auto capture = Admit(SchedulerTest::Plan(FullBatches(4)));
  std::vector<Batch> batches;
  for (int executor : {0, 1}) {
    std::optional<Batch> batch = NextBatch(executor);
    ASSERT_TRUE(batch.has_value()) << executor;
    EXPECT_EQ(batch->members[0].has_unplaced, executor == 1) << "slabs go to the first of them";
    Plan(*batch, executor, /*staged_bytes=*/100);
    batches.push_back(*std::move(batch));
  }
  EXPECT_EQ(NextBatch(0), std::nullopt);
  batches[0].members[0].recipient.window->Take();
  EXPECT_EQ(resumed_, std::vector<int>{0}) << "slabs that come back go to the rows whose turn it is";
  scheduler_->Failed(capture.id, absl::InternalError("end of the test"));
}

TEST_F(ReplicasSchedulerTest, ALostReplicaGetsNoBatchAndTheLastOneEndsEverything) {
  const auto capture = Admit(SchedulerTest::Plan(FullBatches(2)));
  EXPECT_TRUE(scheduler_->ReplicaLost(Executor(0), absl::UnavailableError("lost")));
  EXPECT_EQ(NextBatch(0), std::nullopt);
  EXPECT_FALSE(HasEnded(capture));
  EXPECT_TRUE(NextBatch(1).has_value());
  EXPECT_FALSE(scheduler_->ReplicaLost(Executor(1), absl::UnavailableError("lost")));
  EXPECT_TRUE(HasEnded(capture));
}

}  // namespace
}  // namespace hookline
