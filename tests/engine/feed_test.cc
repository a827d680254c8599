#include <functional>
#include <thread>

#include "gmock/gmock.h"
#include "server/base/status.h"
#include "tests/engine/dataset_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

class FeedTest : public DatasetTest {
 protected:
  static CaptureRequest Member(std::vector<std::string> hook_points, int64_t start_when,
                               OnLag on_lag = OnLag::kDetach) {
    CaptureRequest request = Request(std::move(hook_points), {});
    request.source = FeedSource{"feed", {"corpus", kLength, 0, 0, {}, {}}, start_when, on_lag};
    return request;
  }

  std::vector<std::vector<uint32_t>> From(int64_t first) const { return {all_.begin() + first, all_.end()}; }
};

const std::vector<std::string> kZero = {"blocks.0.hook_resid_post"};
const std::vector<std::string> kTwo = {"blocks.2.hook_resid_post"};

TEST_F(FeedTest, ADatasetIsASource) {
  CreateWithDataset();
  CaptureRequest request = Request(kZero, {});
  request.source = DatasetSource{"corpus", kLength, 3, 5, 7, {}};
  Collector collector(*engine_, request);
  auto sequences = std::vector<std::vector<uint32_t>>(all_.begin() + 3, all_.begin() + 8);
  for (auto& ids : sequences) ids.insert(ids.begin(), 7);
  ExpectSameRows(collector.ReadAll().hook_points, Expected(request, kZero, sequences, /*first_sequence=*/3));
}

TEST_F(FeedTest, CountsPastTheEndClipAndBadCutsAreNamed) {
  CreateWithDataset();
  CaptureRequest request = Request(kZero, {});
  request.source = DatasetSource{"corpus", kLength, 28, 100, {}, {}};
  Collector collector(*engine_, request);
  EXPECT_EQ(collector.ReadAll().ended->sequences, 2);
  const auto field = [&](DatasetSource source) {
    request.source = std::move(source);
    return FieldOf(Collector(*engine_, request).status());
  };
  EXPECT_EQ(field({"corpus", 0, 0, 0, {}, {}}), "dataset.sequence_length");
  EXPECT_EQ(field({"corpus", 300, 0, 0, {}, {}}), "dataset.sequence_length");
  EXPECT_EQ(field({"corpus", kLength, 30, 0, {}, {}}), "dataset.first_sequence");
  EXPECT_EQ(field({"corpus", kLength, -1, 0, {}, {}}), "dataset.first_sequence");
  EXPECT_EQ(field({"corpus", kLength, 0, -1, {}, {}}), "dataset.sequence_count");
  EXPECT_EQ(field({"corpus", kLength, 0, 0, 512, {}}), "dataset.prepend_token_id");
}

TEST_F(FeedTest, MembersShareTheForwardPassesEachWithItsOwnHookPointsAndBudget) {
  CreateWithDataset();
  CaptureRequest first = Member(kZero, 3);
  CaptureRequest second = Member({"hook_embed", kTwo[0]}, 3);
  second.selection.position_stride = 3;
  CaptureRequest third = Member(kTwo, 3);
  third.max_activations = 55;
  Collector a(*engine_, first), b(*engine_, second);
  EXPECT_EQ(a.capture().Next(), std::nullopt) << "the feed has not enough members";
  Collector c(*engine_, third);
  std::thread read_b([&] { b.ReadAll(); });
  std::thread read_c([&] { c.ReadAll(); });
  a.ReadAll();
  read_b.join();
  read_c.join();
  ExpectSameRows(a.collected().hook_points, Expected(first, kZero, all_));
  ExpectSameRows(b.collected().hook_points, Expected(second, second.hook_points, all_));
  ExpectSameRows(c.collected().hook_points, Expected(third, kTwo, all_));
  EXPECT_EQ(c.collected().ended->stop_reason, StopReason::kBudget);
  // A batch of 64 tokens has three sequences, which makes ten passes, not thirty.
  EXPECT_EQ(model_->passes().size(), 10u);
}

TEST_F(FeedTest, ALaterMemberJoinsAtTheFeedsPosition) {
  CreateWithDataset();
  model_->Close();
  Collector first(*engine_, Member(kZero, 1));
  model_->WaitUntilBlocked();
  const CaptureRequest request = Member(kTwo, 1);
  Collector later(*engine_, request);
  ASSERT_TRUE(later.ReadOne());
  EXPECT_EQ(later.collected().started->next_sequence, 3);
  model_->Open();
  std::thread read_first([&] { first.ReadAll(); });
  ExpectSameRows(later.ReadAll().hook_points, Expected(request, kTwo, From(3), /*first_sequence=*/3));
  read_first.join();
}

TEST_F(FeedTest, AMemberThatDiffersFromTheFirstIsRefused) {
  CreateWithDataset();
  Collector first(*engine_, Member(kZero, 2));
  const auto refusal = [&](const std::function<void(CaptureRequest&)>& change) {
    CaptureRequest request = Member(kZero, 2);
    change(request);
    Collector collector(*engine_, request);
    EXPECT_EQ(collector.status().code(), absl::StatusCode::kFailedPrecondition);
    return std::string(collector.status().message());
  };
  EXPECT_THAT(refusal([](auto& r) { std::get<FeedSource>(r.source).dataset.first_sequence = 1; }),
              HasSubstr("dataset part"));
  EXPECT_THAT(refusal([](auto& r) { r.deterministic = true; }), HasSubstr("deterministic"));
  EXPECT_THAT(refusal([](auto& r) { std::get<FeedSource>(r.source).start_when_subscribers = 3; }),
              HasSubstr("start_when_subscribers"));
  first.capture().Cancel();
  // A feed ends with its last member, and its name is free again.
  Collector other(*engine_, Member(kZero, 1));
  EXPECT_TRUE(other.ReadAll().ended->status.ok());
}

TEST_F(FeedTest, ALaggardIsDetachedWithAResumeTokenAndGoesOnAlone) {
  options_.feed_stall_timeout = absl::Milliseconds(50);
  options_.slab_count = 8;  // windows of two slabs
  CreateWithDataset();
  const CaptureRequest request = Member({"blocks.*"}, 2);
  Collector reader(*engine_, Member(kZero, 2)), laggard(*engine_, request);
  ExpectSameRows(reader.ReadAll().hook_points, Expected(Member(kZero, 2), kZero, all_));
  const Collected& got = laggard.ReadAll();
  EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(got.ended->status.message()), HasSubstr("--feed-stall-timeout"));
  CaptureRequest again = request;
  again.resume_token = got.ended->resume_token;
  Collector alone(*engine_, again);
  ASSERT_TRUE(alone.status().ok()) << alone.status();
  const Collected& rest = alone.ReadAll();
  const auto expected = Expected(request, {kZero[0], "blocks.1.hook_resid_post", kTwo[0]}, all_);
  for (size_t h = 0; h < 3; ++h) {
    auto values = got.hook_points[h].values;
    values.insert(values.end(), rest.hook_points[h].values.begin(), rest.hook_points[h].values.end());
    EXPECT_EQ(values, expected[h].values);
  }
}

TEST_F(FeedTest, Promise5ADeterministicFeedsBatchesAreTheSameWhoeverIsAMember) {
  CreateWithDataset();
  const auto shapes = [this](std::vector<CaptureRequest> members) {
    std::vector<std::unique_ptr<Collector>> collectors;
    for (CaptureRequest& member : members) {
      member.deterministic = true;
      collectors.push_back(std::make_unique<Collector>(*engine_, member));
    }
    for (const auto& collector : collectors) EXPECT_TRUE(collector->ReadAll().ended->status.ok());
    std::vector<std::pair<int64_t, int64_t>> shapes;
    for (const FakeModel::Pass& pass : model_->passes()) shapes.emplace_back(pass.sequences, pass.positions);
    model_->ForgetPasses();
    return shapes;
  };
  CaptureRequest few = Member(kZero, 1);
  few.max_activations = 25;  // of the first batch's 60 rows
  CaptureRequest few_of_two = Member(kZero, 2), more_of_two = Member(kTwo, 2);
  few_of_two.max_activations = 25;
  more_of_two.max_activations = 50;
  const std::vector<std::pair<int64_t, int64_t>> whole = {{3, kLength}};
  EXPECT_EQ(shapes({few}), whole);
  EXPECT_EQ(shapes({few_of_two, more_of_two}), whole);
}

// A change of a dataset's file while captures read it, and a part of the error that they end with.
struct Change {
  const char* name;
  std::function<void(const std::string& path)> apply;
  const char* message;
};

TEST_F(FeedTest, ADatasetThatChangesEndsTheCapturesThatReadItWithDataLossAndNoOther) {
  const std::vector<Change> changes = {
      {"cut short", [](const std::string& path) { ASSERT_EQ(truncate(path.c_str(), 100), 0); }, "was changed"},
      {"written over",
       [](const std::string& path) {
         std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
         file << std::string(100, '\xff');
       },
       "was changed"}};
  for (const Change& change : changes) {
    SCOPED_TRACE(change.name);
    if (engine_ != nullptr) ExpectAllSlabsBack();
    WriteAll();
    CreateWithDataset();
    CaptureRequest request = Request(kZero, {});
    request.source = DatasetSource{"corpus", kLength, 0, 0, {}, {}};
    Collector alone(*engine_, request);
    Collector member(*engine_, Member(kTwo, 1));
    ASSERT_TRUE(alone.status().ok() && member.status().ok());
    // The windows hold fewer rows than the dataset has, so both captures have more to read.
    alone.ReadChunks(1);
    member.ReadChunks(1);
    absl::SleepFor(absl::Milliseconds(20));  // the kernel's clock for files ticks every 4 ms
    change.apply(path_);
    for (Collector* reader : {&alone, &member}) {
      const Collected& got = reader->ReadAll();
      EXPECT_EQ(got.ended->stop_reason, StopReason::kError);
      EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kDataLoss) << got.ended->status;
      EXPECT_THAT(std::string(got.ended->status.message()), HasSubstr(path_));
      EXPECT_THAT(std::string(got.ended->status.message()), HasSubstr(change.message));
      EXPECT_FALSE(got.ended->resume_token.empty());
    }
    const auto sequences = Sequences({7, 9});
    const CaptureRequest other = Request(kZero, sequences);
    ExpectSameRows(Collector(*engine_, other).ReadAll().hook_points, Expected(other, kZero, sequences));
    Collector later(*engine_, request);
    EXPECT_EQ(later.ReadAll().ended->status.code(), absl::StatusCode::kDataLoss);
  }
}

TEST_F(FeedTest, ATokenOfADatasetWithOtherContentIsRefused) {
  CreateWithDataset();
  CaptureRequest request = Request(kZero, {});
  request.source = DatasetSource{"corpus", kLength, 0, 0, {}, {}};
  {
    Collector first(*engine_, request);
    request.resume_token = first.ReadChunks(1).chunks.back().resume_token;
  }
  engine_.reset();
  std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary).put(static_cast<char>(all_[0][0] ^ 1));
  CreateWithDataset();
  Collector again(*engine_, request);
  EXPECT_EQ(FieldOf(again.status()), "resume_token");
  EXPECT_THAT(std::string(again.status().message()), HasSubstr("another source"));
}

TEST_F(FeedTest, TheWholeFeedWaitsWhereItsFirstMemberAskedForThat) {
  options_.feed_stall_timeout = absl::Milliseconds(1);
  options_.slab_count = 8;
  CreateWithDataset();
  const CaptureRequest request = Member({"blocks.*"}, 2, OnLag::kWait);
  Collector slow(*engine_, request), fast(*engine_, Member(kZero, 2));
  std::thread read_fast([&] { fast.ReadAll(); });
  ExpectSameRows(slow.ReadAll().hook_points, Expected(request, {kZero[0], "blocks.1.hook_resid_post", kTwo[0]}, all_));
  read_fast.join();
  ExpectSameRows(fast.collected().hook_points, Expected(request, kZero, all_));
}

}  // namespace
}  // namespace hookline
