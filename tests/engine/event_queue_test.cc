// The order of a capture's events, whichever thread pushes first.
#include "server/engine/event_queue.h"

#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"

namespace hookline {
namespace {

class EventQueueTest : public ::testing::Test {
 protected:
  static std::vector<QueuedChunk> TwoRows() {
    std::vector<QueuedChunk> chunks(1);
    chunks[0].chunk.rows = 2;
    return chunks;
  }

  static CaptureStarted Started() {
    CaptureStarted started;
    started.hook_points.resize(1);
    return started;
  }

  int ready_ = 0;
  EventQueue queue_{{[this] { ++ready_; }, nullptr, nullptr}, [] {}};
};

// A thread that admits a capture may be interrupted before it pushes the first event, while the rows come.
TEST_F(EventQueueTest, RowsThatComeBeforeTheFirstEventWaitForIt) {
  EXPECT_EQ(queue_.Next(), std::nullopt);
  queue_.PushChunks(TwoRows());
  EXPECT_FALSE(queue_.WaitsForSink());
  EXPECT_EQ(queue_.Next(), std::nullopt);
  queue_.End({}, EventQueue::Queued::kKeep);
  EXPECT_EQ(queue_.Next(), std::nullopt);
  const int ready_before = ready_;
  queue_.PushStarted(Started());
  EXPECT_EQ(ready_, ready_before + 1);
  EXPECT_TRUE(std::holds_alternative<CaptureStarted>(queue_.Next().value()));
  EXPECT_EQ(std::get<Chunk>(queue_.Next().value()).rows, 2);
  const CaptureEnded ended = std::get<CaptureEnded>(queue_.Next().value());
  ASSERT_EQ(ended.hook_points.size(), 1u);
  EXPECT_EQ(ended.hook_points[0].rows, 2);
}

TEST_F(EventQueueTest, StatisticsThatComeBeforeTheFirstEventAreInTheSummary) {
  CapturePlan plan;
  plan.hook_points.resize(1);
  queue_.AddStatistics(plan, TwoRows());
  queue_.PushStarted(Started());
  queue_.End({}, EventQueue::Queued::kKeep);
  EXPECT_TRUE(std::holds_alternative<CaptureStarted>(queue_.Next().value()));
  EXPECT_EQ(std::get<CaptureEnded>(queue_.Next().value()).hook_points.at(0).rows, 2);
}

TEST_F(EventQueueTest, ACaptureThatWasNeverAdmittedEndsWithoutAFirstEvent) {
  queue_.SkipStarted();
  queue_.End({}, EventQueue::Queued::kKeep);
  EXPECT_TRUE(std::holds_alternative<CaptureEnded>(queue_.Next().value()));
  EXPECT_EQ(queue_.Next(), std::nullopt);
}

}  // namespace
}  // namespace hookline
