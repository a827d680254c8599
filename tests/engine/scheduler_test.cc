// Tests the scheduler by itself: without threads, without a device, and with a clock that stands still.
#include "tests/engine/scheduler_fixture.h"

namespace hookline {
namespace {

TEST_F(SchedulerTest, ACaptureThatIsAloneWaitsHalfOfTheDelayForOthersThatBeginNow) {
  const auto capture = Admit(Plan(Sequence(10)));
  EXPECT_EQ(NextBatch(), std::nullopt);
  EXPECT_EQ(look_again_, clock_.Now() + kDelay / 2);
  clock_.Advance(kDelay / 2);
  EXPECT_TRUE(NextBatch().has_value());
}

TEST_F(SchedulerTest, SequencesThatFillABatchWaitForNobody) {
  Admit(Plan(Sequence(64)));
  EXPECT_TRUE(NextBatch().has_value());
}

TEST_F(SchedulerTest, SequencesWaitTheWholeDelayForACaptureThatMayStillSend) {
  Admit(Plan(StreamedSource{}));
  Admit(Plan(Sequence(10)));
  clock_.Advance(kDelay / 2);
  EXPECT_EQ(NextBatch(), std::nullopt);
  clock_.Advance(kDelay);
  const std::optional<Batch> batch = NextBatch();
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->items.size(), 1u);
}

TEST_F(SchedulerTest, LaunchesAtMostTwoBatchesThatAreNotComputed) {
  Admit(Plan(Tokens(std::vector<std::vector<uint32_t>>(5, std::vector<uint32_t>(64, 1)))));
  LaunchedPass nothing;
  nothing.tokens = nothing.positions = 1;
  for (int i = 0; i < 2; ++i) {
    const std::optional<Batch> batch = NextBatch();
    ASSERT_TRUE(batch.has_value()) << i;
    scheduler_->Planned(Executor(), *batch);
    scheduler_->Launched(Executor(), {nothing});
  }
  EXPECT_EQ(NextBatch(), std::nullopt);
  scheduler_->Computed(Executor(), {});
  EXPECT_TRUE(NextBatch().has_value());
}

TEST_F(SchedulerTest, ACaptureEndsWhenNothingOfItIsInFlight) {
  const auto capture = Admit(Plan(Sequence(64)));
  std::optional<Batch> batch = NextBatch();
  ASSERT_TRUE(batch.has_value());
  Run(*batch);
  EXPECT_FALSE(HasEnded(capture));
  Deliver(*batch);
  EXPECT_TRUE(HasEnded(capture));
}

TEST_F(SchedulerTest, RowsThatWaitForSlabsKeepTheNextBatchBack) {
  const auto capture = Admit(Plan(Tokens({std::vector<uint32_t>(64, 1), std::vector<uint32_t>(64, 1)})));
  std::optional<Batch> batch = NextBatch();
  ASSERT_TRUE(batch.has_value());
  Plan(*batch, /*executor=*/0, /*staged_bytes=*/100);
  EXPECT_EQ(NextBatch(), std::nullopt);
  {
    const SlabRef slab = batch->members[0].recipient.window->Take();
    EXPECT_TRUE(room_.empty());
  }
  EXPECT_EQ(room_, std::vector<CaptureId>{capture.id}) << "the copier is told of a slab that came back";
  scheduler_->Placed(Executor(), capture.id, 100);
  EXPECT_TRUE(NextBatch().has_value());
  scheduler_->Failed(capture.id, absl::InternalError("end of the test"));
}

TEST_F(SchedulerTest, ACaptureWhoseLastRowsAreLostEndsWithThatError) {
  const auto capture = Admit(Plan(Sequence(10)));
  clock_.Advance(kDelay);
  std::optional<Batch> batch = NextBatch();
  ASSERT_TRUE(batch.has_value());
  Run(*batch);  // its source has ended
  scheduler_->Failed(capture.id, absl::InternalError("the copy failed"));
  Deliver(*batch);
  std::optional<CaptureEnded> ended;
  while (std::optional<CaptureEvent> event = capture.events->Next()) {
    if (const auto* end = std::get_if<CaptureEnded>(&*event)) ended = *end;
  }
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->status.message(), "the copy failed");
}

TEST_F(SchedulerTest, QueueTimeIsTheTimeThatASequenceCouldRunAndDidNot) {
  const auto capture = Admit(Plan(Sequence(10)));
  EXPECT_EQ(NextBatch(), std::nullopt);
  clock_.Advance(kDelay);
  std::optional<Batch> batch = NextBatch();
  ASSERT_TRUE(batch.has_value());
  Run(*batch);
  clock_.Advance(absl::Hours(1));
  Deliver(*batch);
  ASSERT_TRUE(std::holds_alternative<CaptureStarted>(*capture.events->Next()));
  EXPECT_EQ(std::get<CaptureEnded>(*capture.events->Next()).queue_time, kDelay);
}

TEST_F(SchedulerTest, AdmissionsRefuseMoreCapturesThanTheLimit) {
  for (int i = 0; i < options_.max_captures; ++i) Admit(Plan(StreamedSource{}));
  const auto refused = scheduler_->Admit(model_id_, Plan(StreamedSource{}), "test", {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SchedulerTest, TokensThatCapturesHoldAreBounded) {
  options_.max_request_tokens = options_.max_held_tokens = 100;
  Create();
  Admit(Plan(Sequence(60)));
  const auto refused = scheduler_->Admit(model_id_, Plan(Sequence(60)), "test", {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
}

TEST_F(SchedulerTest, AnAdmissionThatOvertakesLeavesTheOldestItsSlabs) {
  EXPECT_EQ(ChooseAdmission({5, 1}, /*free=*/6, /*slab_count=*/16, /*held_by_overtakers=*/0), 0u);
  EXPECT_EQ(ChooseAdmission({5, 1}, /*free=*/4, /*slab_count=*/16, /*held_by_overtakers=*/0), 1u);
  EXPECT_EQ(ChooseAdmission({5, 4}, /*free=*/4, /*slab_count=*/16, /*held_by_overtakers=*/1), std::nullopt);
  EXPECT_EQ(ChooseAdmission({14, 3}, /*free=*/4, /*slab_count=*/16, /*held_by_overtakers=*/0), std::nullopt);
  EXPECT_EQ(ChooseAdmission({}, /*free=*/4, /*slab_count=*/16, /*held_by_overtakers=*/0), std::nullopt);
}

}  // namespace
}  // namespace hookline
