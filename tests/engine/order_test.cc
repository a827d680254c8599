// Tests datasets that are shuffled, read several times, or begun in the middle.
#include <algorithm>
#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "server/base/status.h"
#include "tests/engine/dataset_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

class OrderTest : public DatasetTest {
 protected:
  static CaptureRequest Shuffled(uint64_t seed, int64_t epochs, int64_t skip_sequences = 0) {
    CaptureRequest request = Request(kNames, {});
    DatasetSource source{"corpus", kLength, kFirst, kCount, {}, {}};
    source.shuffle_seed = seed;
    source.epochs = epochs;
    source.skip_sequences = skip_sequences;
    request.source = source;
    return request;
  }

  // Returns the sequences in the order in which a capture ran them, by the provenance of its rows.
  static std::vector<int64_t> OrderOf(const Collected& got) {
    std::vector<int64_t> order;
    const auto& rows = got.hook_points[0];
    for (size_t i = 0; i < rows.sequence.size(); ++i) {
      if (rows.position[i] == 0) order.push_back(rows.sequence[i]);
    }
    return order;
  }

  std::vector<int64_t> OrderOf(const CaptureRequest& request) {
    Collector collector(*engine_, request);
    const Collected& got = collector.ReadAll();
    EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
    return OrderOf(got);
  }

  // Returns the rows of a capture that takes the sequences in this order.
  std::vector<Collected::Rows> InOrder(const CaptureRequest& request, const std::vector<int64_t>& order) {
    std::vector<Collected::Rows> rows(kNames.size());
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    for (int64_t sequence : order) {
      const auto more = Expected(request, kNames, {all_[sequence]}, sequence);
      for (size_t h = 0; h < rows.size(); ++h) {
        append(rows[h].values, more[h].values);
        append(rows[h].sequence, more[h].sequence);
        append(rows[h].position, more[h].position);
        append(rows[h].token_id, more[h].token_id);
      }
    }
    return rows;
  }

  // Resumes after every chunk of a capture and expects the rest to follow exactly.
  void CutEverywhere(const CaptureRequest& request) {
    Collector whole(*engine_, request);
    whole.ReadAll();
    const auto expected = InOrder(request, OrderOf(whole.collected()));
    ExpectSameRows(whole.collected().hook_points, expected);
    for (const Collected::ChunkSeen& chunk : whole.collected().chunks) {
      CaptureRequest again = request;
      again.resume_token = chunk.resume_token;
      Collector rest(*engine_, again);
      ASSERT_TRUE(rest.status().ok()) << rest.status();
      rest.ReadAll();
      for (size_t h = 0; h < kNames.size(); ++h) {
        const auto begin = expected[h].values.begin() + rest.collected().started->hook_points[h].rows;
        EXPECT_EQ(rest.collected().hook_points[h].values,
                  std::vector<std::vector<float>>(begin, expected[h].values.end()));
      }
    }
  }

  static constexpr int64_t kFirst = 4, kCount = 17;
  static const std::vector<std::string> kNames;
};

const std::vector<std::string> OrderTest::kNames = {"hook_embed", "blocks.1.hook_resid_post"};

TEST_F(OrderTest, EachEpochTakesEverySequenceOnceInAnOrderOfItsOwn) {
  CreateWithDataset();
  const std::vector<int64_t> order = OrderOf(Shuffled(7, 3));
  ASSERT_EQ(order.size(), 3u * kCount);
  std::vector<int64_t> all(kCount);
  std::iota(all.begin(), all.end(), kFirst);
  std::vector<std::vector<int64_t>> epochs;
  for (int e = 0; e < 3; ++e) {
    epochs.emplace_back(order.begin() + e * kCount, order.begin() + (e + 1) * kCount);
    std::vector<int64_t> sorted = epochs.back();
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(sorted, all);
    EXPECT_NE(epochs.back(), all);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  EXPECT_EQ(OrderOf(Shuffled(7, 3)), order);
  EXPECT_NE(OrderOf(Shuffled(8, 3)), order);
}

// The order is part of the protocol, because clients compute it too.
TEST_F(OrderTest, TheOrderIsTheOneThatTheProtoSpecifies) {
  CreateWithDataset();
  EXPECT_EQ(OrderOf(Shuffled(7, 2)),
            (std::vector<int64_t>{10, 7, 15, 14, 6,  17, 9, 8,  20, 16, 12, 5, 18, 13, 4,  11, 19,
                                  16, 4, 20, 7,  11, 8,  9, 18, 10, 13, 15, 6, 12, 14, 19, 5,  17}));
}

TEST_F(OrderTest, ProvenanceAndValuesAreThoseOfTheTrueSequence) {
  CreateWithDataset();
  CaptureRequest request = Shuffled(1, 2);
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  ExpectSameRows(got.hook_points, InOrder(request, OrderOf(got)));
  EXPECT_EQ(got.ended->sequences, 2 * kCount);
}

TEST_F(OrderTest, EpochsWithoutASeedRepeatTheOrder) {
  CreateWithDataset();
  CaptureRequest request = Shuffled(0, 2);
  std::get<DatasetSource>(request.source).shuffle_seed.reset();
  std::vector<int64_t> twice;
  for (int e = 0; e < 2; ++e) {
    for (int64_t s = 0; s < kCount; ++s) twice.push_back(kFirst + s);
  }
  EXPECT_EQ(OrderOf(request), twice);
}

TEST_F(OrderTest, SkippedSequencesAreThoseOfTheOrdersBeginning) {
  CreateWithDataset();
  const std::vector<int64_t> whole = OrderOf(Shuffled(7, 2));
  for (int64_t skip : {1, 16, 17, 33}) {
    EXPECT_EQ(OrderOf(Shuffled(7, 2, skip)), std::vector<int64_t>(whole.begin() + skip, whole.end()));
  }
}

TEST_F(OrderTest, ResumesExactlyAtEveryCut) {
  options_.slab_count = 8;
  CreateWithDataset();
  CutEverywhere(Shuffled(7, 2));
}

TEST_F(OrderTest, ResumesExactlyAtEveryCutWithSelectionBudgetAndSkippedSequences) {
  options_.slab_count = 8;
  CreateWithDataset();
  CaptureRequest request = Shuffled(9, 3, 5);
  request.selection.sample_rows = 7;
  request.selection.seed = 3;
  request.selection.position_end = -2;
  Collector whole(*engine_, request);
  const Collected& got = whole.ReadAll();
  // Sampling depends on the sequence, not on the order, so each epoch keeps the same rows of a sequence.
  EXPECT_EQ(got.hook_points[0].values.size(), static_cast<size_t>(7 * (3 * kCount - 5)));
  for (const Collected::ChunkSeen& chunk : got.chunks) {
    CaptureRequest again = request;
    again.resume_token = chunk.resume_token;
    Collector rest(*engine_, again);
    rest.ReadAll();
    const int64_t first = rest.collected().started->hook_points[1].rows;
    EXPECT_EQ(
        rest.collected().hook_points[1].values,
        std::vector<std::vector<float>>(got.hook_points[1].values.begin() + first, got.hook_points[1].values.end()));
  }
}

TEST_F(OrderTest, ResumesExactlyAtEveryCutOfDeterministicBatches) {
  options_.slab_count = 8;
  CreateWithDataset();
  CaptureRequest request = Shuffled(7, 2);
  request.deterministic = true;
  CutEverywhere(request);
}

TEST_F(OrderTest, MembersOfAFeedSeeOneOrder) {
  CreateWithDataset();
  CaptureRequest first = Shuffled(7, 2);
  first.source = FeedSource{"feed", std::get<DatasetSource>(first.source), 2};
  CaptureRequest second = first;
  second.selection.position_stride = 5;
  Collector a(*engine_, first), b(*engine_, second);
  std::thread read_b([&] { b.ReadAll(); });
  a.ReadAll();
  read_b.join();
  const std::vector<int64_t> order = OrderOf(a.collected());
  EXPECT_EQ(order, OrderOf(Shuffled(7, 2)));
  ExpectSameRows(b.collected().hook_points, InOrder(second, order));
}

TEST_F(OrderTest, AMemberWithAnotherOrderIsRefused) {
  CreateWithDataset();
  model_->Close();
  CaptureRequest first = Shuffled(7, 2);
  first.source = FeedSource{"feed", std::get<DatasetSource>(first.source), 1};
  Collector a(*engine_, first);
  CaptureRequest second = first;
  std::get<FeedSource>(second.source).dataset.shuffle_seed = 8;
  Collector b(*engine_, second);
  EXPECT_EQ(b.status().code(), absl::StatusCode::kFailedPrecondition);
  model_->Open();
}

TEST_F(OrderTest, ATokenOfAnotherOrderIsRefused) {
  CreateWithDataset();
  Collector whole(*engine_, Shuffled(7, 2));
  CaptureRequest again = Shuffled(8, 2);
  again.resume_token = whole.ReadAll().chunks[0].resume_token;
  const absl::Status status = Collector(*engine_, again).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("its order"));
}

TEST_F(OrderTest, BadOrdersAreNamed) {
  CreateWithDataset();
  const auto refused = [&](int64_t epochs, int64_t skip) {
    return Collector(*engine_, Shuffled(7, epochs, skip)).status();
  };
  EXPECT_EQ(FieldOf(refused(0, 0)), "dataset.epochs");
  EXPECT_EQ(FieldOf(refused(-1, 0)), "dataset.epochs");
  EXPECT_THAT(refused(1'000'001, 0).message(), HasSubstr("1000000"));
  EXPECT_EQ(FieldOf(refused(2, 34)), "dataset.skip_sequences");
  EXPECT_EQ(FieldOf(refused(2, -1)), "dataset.skip_sequences");
  EXPECT_TRUE(refused(2, 33).ok());
}

TEST_F(OrderTest, EstimateCountsAllEpochs) {
  CreateWithDataset();
  const absl::StatusOr<CaptureEstimate> estimate = Estimate(Shuffled(7, 3, 1));
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->sequences, 3 * kCount - 1);
  EXPECT_EQ(estimate->hook_points[0].rows, (3 * kCount - 1) * kLength);
}

}  // namespace
}  // namespace hookline
