#include "server/capture/batch_former.h"

#include <map>

#include "gmock/gmock.h"
#include "tests/capture/tokens.h"

namespace hookline {
namespace {

class BatchFormerTest : public ::testing::Test {
 protected:
  Lane* AddLane(const std::vector<int>& lengths, bool deterministic = false) {
    CapturePlan plan;
    plan.deterministic = deterministic;
    lanes_.push_back(std::make_unique<Lane>(plan, /*max_batch_tokens=*/100));
    std::vector<std::vector<uint32_t>> sequences;
    for (int length : lengths) sequences.emplace_back(length, 1);
    lanes_.back()->source.Add(Tokens(sequences));
    lanes_.back()->source.Finish();
    return lanes_.back().get();
  }

  std::vector<BatchItem> Form(BatchLimits limits = {100, true}) {
    std::vector<Lane*> ready;
    for (const auto& lane : lanes_) {
      if (lane->source.HasNext()) ready.push_back(lane.get());
    }
    auto items = FormBatch(ready, limits);
    if (!items.empty()) {
      std::stable_partition(lanes_.begin(), lanes_.end(),
                            [&](const auto& lane) { return lane.get() != items[0].lane; });
    }
    return items;
  }

  static int64_t Positions(const std::vector<BatchItem>& items) {
    size_t longest = 0;
    for (const BatchItem& item : items) longest = std::max(longest, item.sequence.ids.size());
    return static_cast<int64_t>(longest * items.size());
  }

  std::vector<std::unique_ptr<Lane>> lanes_;
};

TEST_F(BatchFormerTest, FillsABatchAndNoMore) {
  AddLane(std::vector<int>(20, 30));
  EXPECT_EQ(Form().size(), 3u);
}

TEST_F(BatchFormerTest, ASequenceLongerThanABatchGoesAlone) {
  AddLane({300, 10});
  EXPECT_EQ(Form().size(), 1u);
  EXPECT_EQ(Form().size(), 1u);
  EXPECT_TRUE(Form().empty());
}

TEST_F(BatchFormerTest, KeepsALanesOrder) {
  Lane* lane = AddLane({10, 40, 10, 90, 5, 5, 5});
  int64_t next = 0;
  for (auto items = Form(); !items.empty(); items = Form()) {
    for (const BatchItem& item : items) {
      EXPECT_EQ(item.lane, lane);
      EXPECT_EQ(item.sequence.index, next++);
    }
    EXPECT_LE(Positions(items), 100);
  }
  EXPECT_EQ(next, 7);
}

TEST_F(BatchFormerTest, PutsSimilarLengthsTogether) {
  AddLane({10, 10, 10});
  Lane* other = AddLane({90});
  AddLane({11, 11, 11});
  for (const BatchItem& item : Form()) EXPECT_NE(item.lane, other);
}

TEST_F(BatchFormerTest, IsFairByTokensBetweenLongAndShort) {
  Lane* shorts = AddLane(std::vector<int>(2000, 5));
  Lane* longs = AddLane(std::vector<int>(100, 100));
  std::map<const Lane*, int64_t> tokens;
  for (int i = 0; i < 60; ++i) {
    for (const BatchItem& item : Form()) tokens[item.lane] += static_cast<int64_t>(item.sequence.ids.size());
  }
  EXPECT_GT(tokens[shorts], tokens[longs] / 2);
  EXPECT_GT(tokens[longs], tokens[shorts] / 2);
}

TEST_F(BatchFormerTest, ASmallLaneWaitsForAtMostTwoBatchesOfABulkyOne) {
  AddLane(std::vector<int>(1000, 50));
  for (int i = 0; i < 5; ++i) Form();
  Lane* small = AddLane({4});
  int batches = 0;
  for (bool seen = false; !seen; ++batches) {
    for (const BatchItem& item : Form()) seen |= item.lane == small;
  }
  EXPECT_LE(batches, 2);
}

TEST_F(BatchFormerTest, SmallLanesAreThoseThatFullBatchesWouldHoldUp) {
  const BatchLimits limits{3200, true};
  Lane* few = AddLane({90, 10});  // a thirty-second of a batch
  AddLane({90, 11});
  const auto all = [this] {
    std::vector<Lane*> lanes;
    for (const auto& lane : lanes_) lanes.push_back(lane.get());
    return lanes;
  };
  EXPECT_TRUE(SmallLanes(all(), limits).empty()) << "nobody fills a batch";
  AddLane(std::vector<int>(40, 100));
  EXPECT_EQ(SmallLanes(all(), limits), std::vector<Lane*>{few});
}

TEST_F(BatchFormerTest, EqualLengthsOnlyWhereTheModelNeedsIt) {
  AddLane({10, 10, 11});
  AddLane({11, 10});
  EXPECT_EQ(Form({100, false}).size(), 2u);
  EXPECT_EQ(Form({100, false}).size(), 2u);
  EXPECT_EQ(Form({100, false}).size(), 1u);
}

TEST_F(BatchFormerTest, ADeterministicLaneGoesAloneInBatchesThatItsSourceFixes) {
  AddLane({20, 20, 20, 20, 20, 20, 20}, /*deterministic=*/true);
  AddLane({20, 20});
  std::vector<size_t> sizes;
  for (auto items = Form(); !items.empty(); items = Form()) {
    for (const BatchItem& item : items) EXPECT_EQ(item.lane, items[0].lane);
    if (items[0].lane->deterministic) sizes.push_back(items.size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{5, 2}));
}

}  // namespace
}  // namespace hookline
