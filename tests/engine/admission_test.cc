// Tests who gets a window when there are not enough slabs for all.
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_fixture.h"

namespace hookline {
namespace {

const std::vector<std::string> kOne = {"blocks.2.hook_resid_post"};

TEST_F(EngineTest, Promise6CapturesWithoutAWindowQueueInTheOrderOfArrival) {
  options_.slab_count = 8;
  options_.window_slabs = 2;
  Create();
  model_->Close();  // a capture that has computed everything gives back what it does not need
  std::vector<std::unique_ptr<Collector>> holders;
  for (int i = 0; i < 4; ++i) {
    holders.push_back(std::make_unique<Collector>(*engine_, Request(kOne, Sequences({10}))));
    EXPECT_TRUE(holders.back()->ReadOne());  // started
  }
  Collector queued(*engine_, Request(kOne, Sequences({10})));
  EXPECT_EQ(queued.capture().Next(), std::nullopt);
  model_->Open();
  holders[0]->ReadAll();
  EXPECT_TRUE(queued.ReadAll().ended->status.ok());
}

// There are 64 slabs. A capture of one hook point takes six of them, which is the least that it can run with; one of
// all hook points takes up to 16. Captures that together hold 16 slabs may overtake one that waits.
class AdmissionTest : public EngineTest {
 protected:
  AdmissionTest() {
    options_.window_slabs = 2;
    Create();
    const auto narrow = engine_->Plan(Request(kOne, Sequences({10})));
    const auto wide = engine_->Plan(Request({"hook_embed", "blocks.*"}, Sequences({10})));
    EXPECT_EQ(narrow->window_slabs, 6);
    EXPECT_GT(wide->window_slabs, 10);
    EXPECT_LE(wide->window_slabs, 16);
  }
  ~AdmissionTest() override { model_->Open(); }

  std::unique_ptr<Collector> Wide() {
    return std::make_unique<Collector>(*engine_, Request({"hook_embed", "blocks.*"}, Sequences({10})));
  }

  // Starts a capture that nobody reads. Its rows do not fit its window, so that it keeps all of the window.
  std::unique_ptr<Collector> Stalled() {
    return std::make_unique<Collector>(*engine_, Request(kOne, Sequences(std::vector<int>(40, 30))));
  }

  std::vector<std::unique_ptr<Collector>> StalledReaders(int count) {
    std::vector<std::unique_ptr<Collector>> stalled;
    for (int i = 0; i < count; ++i) {
      stalled.push_back(Stalled());
      EXPECT_TRUE(IsAdmitted(*stalled.back()));
    }
    return stalled;
  }

  static bool IsAdmitted(Collector& collector) { return collector.capture().Next().has_value(); }
};

TEST_F(AdmissionTest, Promise6AWideRequestThatSlowReadersKeepOutKeepsNobodyElseOut) {
  auto stalled = StalledReaders(9);
  const auto wide = Wide();
  for (int i = 0; i < 20; ++i) {
    const auto sequences = Sequences({20, 7}, static_cast<uint32_t>(i));
    Collector small(*engine_, Request(kOne, sequences));
    ExpectSameRows(small.ReadAll().hook_points, Expected(Request({}, {}), kOne, sequences));
  }
  EXPECT_FALSE(IsAdmitted(*wide));
  stalled.pop_back();
  EXPECT_TRUE(wide->ReadAll().ended->status.ok());
}

TEST_F(AdmissionTest, Promise6WhoPassesAWideRequestLeavesItItsSlabs) {
  model_->Close();  // only the first capture is in flight: the slabs of the others are back as soon as they go
  auto stalled = StalledReaders(10);
  const auto wide = Wide();
  const auto first = Stalled(), second = Stalled(), third = Stalled();
  stalled.pop_back();
  EXPECT_TRUE(IsAdmitted(*first));
  stalled.pop_back();
  EXPECT_TRUE(IsAdmitted(*second));
  // The two hold 12 slabs; a third would exceed what may pass. The slabs that come back now belong to the wide capture.
  stalled.pop_back();
  EXPECT_FALSE(IsAdmitted(*third));
  EXPECT_FALSE(IsAdmitted(*wide));
  stalled.pop_back();
  EXPECT_TRUE(IsAdmitted(*wide));
  EXPECT_FALSE(IsAdmitted(*third));
}

TEST_F(AdmissionTest, ACaptureThatNoLongerWaitsLetsTheNextOneIn) {
  model_->Close();
  auto stalled = StalledReaders(10);
  const auto wide = Wide();
  const auto first = Stalled(), second = Stalled(), third = Stalled();
  stalled.resize(7);
  EXPECT_FALSE(IsAdmitted(*third));
  wide->capture().Cancel();
  EXPECT_TRUE(IsAdmitted(*third));
}

TEST_F(AdmissionTest, TheTimeBeforeAdmissionIsQueueTime) {
  const auto reader = Stalled();
  EXPECT_TRUE(reader->ReadOne());
  auto stalled = StalledReaders(9);
  const absl::Time before = absl::Now();
  Collector queued(*engine_, Request(kOne, Sequences({10})));
  EXPECT_EQ(queued.capture().Next(), std::nullopt);
  const absl::Time waiting = absl::Now();
  reader->ReadChunks(10);  // these forward passes take longer than the queued capture's sequences wait for theirs
  const absl::Time still_waiting = absl::Now();
  EXPECT_FALSE(IsAdmitted(queued));
  stalled.pop_back();
  const CaptureEnded& ended = *queued.ReadAll().ended;
  EXPECT_GE(ended.queue_time, still_waiting - waiting);
  EXPECT_LE(ended.queue_time, absl::Now() - before);
}

}  // namespace
}  // namespace hookline
