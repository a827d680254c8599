#include "server/engine/batch_former.h"

#include <map>

#include "gmock/gmock.h"
#include "tests/support/tokens.h"

namespace hookline {
namespace {

class BatchFormerTest : public ::testing::Test {
 protected:
  Flow* AddFlow(const std::vector<int>& lengths, bool deterministic = false) {
    CapturePlan plan;
    plan.deterministic = deterministic;
    plan.limits.max_batch_tokens = 100;
    flows_.push_back(std::make_unique<Flow>(FlowId{static_cast<int64_t>(flows_.size()) + 1}, ModelId{0}, plan));
    std::vector<std::vector<uint32_t>> sequences;
    for (int length : lengths) sequences.emplace_back(length, 1);
    flows_.back()->source.Add(Tokens(sequences));
    flows_.back()->source.Finish();
    return flows_.back().get();
  }

  std::vector<BatchItem> Form(BatchLimits limits = {100, true}) {
    std::vector<Flow*> ready;
    for (const auto& flow : flows_) {
      if (flow->source.HasNext()) ready.push_back(flow.get());
    }
    auto items = FormBatch(ready, ready, limits);
    if (!items.empty()) {
      std::stable_partition(flows_.begin(), flows_.end(), [&](const auto& flow) { return flow->id != items[0].flow; });
    }
    return items;
  }

  static int64_t Positions(const std::vector<BatchItem>& items) {
    size_t longest = 0;
    for (const BatchItem& item : items) longest = std::max(longest, item.sequence.ids.size());
    return static_cast<int64_t>(longest * items.size());
  }

  std::vector<std::unique_ptr<Flow>> flows_;
};

TEST_F(BatchFormerTest, FillsABatchAndNoMore) {
  AddFlow(std::vector<int>(20, 30));
  EXPECT_EQ(Form().size(), 3u);
}

TEST_F(BatchFormerTest, ASequenceLongerThanABatchGoesAlone) {
  AddFlow({300, 10});
  EXPECT_EQ(Form().size(), 1u);
  EXPECT_EQ(Form().size(), 1u);
  EXPECT_TRUE(Form().empty());
}

TEST_F(BatchFormerTest, KeepsAFlowsOrder) {
  Flow* flow = AddFlow({10, 40, 10, 90, 5, 5, 5});
  int64_t next = 0;
  for (auto items = Form(); !items.empty(); items = Form()) {
    for (const BatchItem& item : items) {
      EXPECT_EQ(item.flow, flow->id);
      EXPECT_EQ(item.sequence.index, next++);
    }
    EXPECT_LE(Positions(items), 100);
  }
  EXPECT_EQ(next, 7);
}

TEST_F(BatchFormerTest, PutsSimilarLengthsTogether) {
  AddFlow({10, 10, 10});
  Flow* other = AddFlow({90});
  AddFlow({11, 11, 11});
  for (const BatchItem& item : Form()) EXPECT_NE(item.flow, other->id);
}

TEST_F(BatchFormerTest, IsFairByTokensBetweenLongAndShort) {
  Flow* shorts = AddFlow(std::vector<int>(2000, 5));
  Flow* longs = AddFlow(std::vector<int>(100, 100));
  std::map<FlowId, int64_t> tokens;
  for (int i = 0; i < 60; ++i) {
    for (const BatchItem& item : Form()) tokens[item.flow] += static_cast<int64_t>(item.sequence.ids.size());
  }
  EXPECT_GT(tokens[shorts->id], tokens[longs->id] / 2);
  EXPECT_GT(tokens[longs->id], tokens[shorts->id] / 2);
}

TEST_F(BatchFormerTest, ASmallFlowWaitsForAtMostTwoBatchesOfABulkyOne) {
  AddFlow(std::vector<int>(1000, 50));
  for (int i = 0; i < 5; ++i) Form();
  Flow* small = AddFlow({4});
  int batches = 0;
  for (bool seen = false; !seen; ++batches) {
    for (const BatchItem& item : Form()) seen |= item.flow == small->id;
  }
  EXPECT_LE(batches, 2);
}

TEST_F(BatchFormerTest, SmallFlowsAreThoseThatFullBatchesWouldHoldUp) {
  const BatchLimits limits{3200, true};
  Flow* few = AddFlow({90, 10});  // 100 tokens, 1/32 of a batch
  AddFlow({90, 11});
  const auto all = [this] {
    std::vector<Flow*> flows;
    for (const auto& flow : flows_) flows.push_back(flow.get());
    return flows;
  };
  EXPECT_TRUE(SmallFlows(all(), limits).empty()) << "nobody fills a batch";
  AddFlow(std::vector<int>(40, 100));
  EXPECT_EQ(SmallFlows(all(), limits), std::vector<Flow*>{few});
}

TEST_F(BatchFormerTest, EqualLengthsOnlyWhereTheModelNeedsIt) {
  AddFlow({10, 10, 11});
  AddFlow({11, 10});
  EXPECT_EQ(Form({100, false}).size(), 2u);
  EXPECT_EQ(Form({100, false}).size(), 2u);
  EXPECT_EQ(Form({100, false}).size(), 1u);
}

TEST_F(BatchFormerTest, ADeterministicFlowGoesAloneInBatchesThatItsSourceFixes) {
  AddFlow({20, 20, 20, 20, 20, 20, 20}, /*deterministic=*/true);
  AddFlow({20, 20});
  std::vector<size_t> sizes;
  for (auto items = Form(); !items.empty(); items = Form()) {
    for (const BatchItem& item : items) EXPECT_EQ(item.flow, items[0].flow);
    if (items[0].deterministic) sizes.push_back(items.size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{5, 2}));
}

}  // namespace
}  // namespace hookline
