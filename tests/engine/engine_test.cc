// Tests the design's promises, each by name.
#include <thread>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "server/base/status.h"
#include "tests/engine/engine_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kTwo = {"blocks.0.hook_resid_post", "blocks.2.hook_resid_post"};

TEST_F(EngineTest, Promise1And2RowsAreTheModelsInOrderAndAligned) {
  Create();
  const auto sequences = Sequences({5, 1, 30, 64, 17});
  const CaptureRequest request = Request({"blocks.2.hook_resid_post", "hook_embed"}, sequences);
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  ASSERT_TRUE(got.started.has_value());
  ASSERT_TRUE(got.ended->status.ok()) << got.ended->status;
  EXPECT_EQ(got.ended->stop_reason, StopReason::kSourceEnded);
  ExpectSameRows(got.hook_points, Expected(request, {"blocks.2.hook_resid_post", "hook_embed"}, sequences));
  EXPECT_EQ(got.ended->sequences, 5);
  EXPECT_EQ(got.ended->tokens, 117);
}

TEST_F(EngineTest, Promise2ChunksComeInRowGroupsInTheOrderOfTheRequest) {
  Create();
  Collector collector(*engine_, Request({"hook_embed", "blocks.*"}, Sequences({64, 64, 64, 64, 200})));
  const Collected& got = collector.ReadAll();
  ASSERT_EQ(got.chunks.size() % 4, 0u);
  for (size_t i = 0; i < got.chunks.size(); ++i) {
    EXPECT_EQ(got.chunks[i].hook_point, static_cast<int>(i % 4));
    EXPECT_EQ(got.chunks[i].first_row, got.chunks[i - i % 4].first_row);
    EXPECT_EQ(got.chunks[i].rows, got.chunks[i - i % 4].rows);
  }
}

TEST_F(EngineTest, Promise3BudgetsAreExactAtEveryEdge) {
  Create();
  const auto sequences = Sequences({30, 30, 30, 30});
  // The budgets are 1 row; the rows of a sequence, of a batch (two sequences of at most 64 tokens) and of the whole
  // source; and one less and one more than each.
  for (int64_t budget : {1, 29, 30, 31, 59, 60, 61, 119, 120, 121}) {
    CaptureRequest request = Request(kTwo, sequences);
    request.max_activations = budget;
    Collector collector(*engine_, request);
    const Collected& got = collector.ReadAll();
    ExpectSameRows(got.hook_points, Expected(request, kTwo, sequences));
    EXPECT_EQ(got.ended->stop_reason, budget <= 120 ? StopReason::kBudget : StopReason::kSourceEnded) << budget;
    EXPECT_EQ(got.ended->hook_points[0].rows, std::min<int64_t>(budget, 120));
  }
}

TEST_F(EngineTest, Promise3BudgetsDifferByHookPoint) {
  Create();
  const auto sequences = Sequences({30, 64, 64, 10});
  CaptureRequest request = Request({"hook_embed", kTwo[0], kTwo[1]}, sequences);
  request.max_activations = 100;
  request.max_activations_by_hook_point = {{"hook_embed", 1}, {kTwo[1], 31}};
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  ExpectSameRows(got.hook_points, Expected(request, request.hook_points, sequences));
  EXPECT_EQ(got.ended->stop_reason, StopReason::kBudget);
}

TEST_F(EngineTest, Promise3TheServersCapClipsAndIsTold) {
  options_.max_rows = 10;
  Create();
  CaptureRequest request = Request(kTwo, Sequences({30}));
  request.max_activations_by_hook_point = {{kTwo[0], 11}, {kTwo[1], 9}};
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  EXPECT_EQ(got.started->hook_points[0].max_activations, 10);
  EXPECT_TRUE(got.started->hook_points[0].clipped);
  EXPECT_EQ(got.started->hook_points[1].max_activations, 9);
  EXPECT_FALSE(got.started->hook_points[1].clipped);
  EXPECT_EQ(got.hook_points[0].values.size(), 10u);
  EXPECT_EQ(got.hook_points[1].values.size(), 9u);
}

TEST_F(EngineTest, Promise3NoForwardPassAfterTheBudget) {
  Create();
  CaptureRequest request = Request(kTwo, Sequences(std::vector<int>(100, 64)));
  request.max_activations = 65;
  Collector collector(*engine_, request);
  collector.ReadAll();
  EXPECT_EQ(model_->passes().size(), 2u);
}

TEST_F(EngineTest, Promise4TheForwardPassEndsAtTheDeepestHookPointThatStillHasBudget) {
  Create();
  CaptureRequest request = Request({"hook_embed", "blocks.1.hook_resid_post"}, Sequences({64, 64}));
  request.max_activations_by_hook_point = {{"blocks.1.hook_resid_post", 64}};
  Collector collector(*engine_, request);
  collector.ReadAll();
  const auto passes = model_->passes();
  ASSERT_EQ(passes.size(), 2u);
  EXPECT_EQ(passes[0].hook_points, (std::vector<int>{0, 2}));
  EXPECT_EQ(passes[1].hook_points, std::vector<int>{0});
}

TEST_F(EngineTest, Promise4SequencesWithoutSelectedRowsAreNotRun) {
  Create();
  CaptureRequest request = Request(kTwo, Sequences({3, 40, 4, 50}));
  request.selection.skip_first = 10;
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  EXPECT_EQ(got.hook_points[0].values.size(), 70u);
  EXPECT_EQ(got.ended->sequences, 2);
}

TEST_F(EngineTest, SelectionsKeepWhatTheyName) {
  Create();
  const auto sequences = Sequences({50, 20, 64, 3, 41});
  std::vector<Selection> selections(6);
  selections[0].skip_first = 7;
  selections[1].position_end = 9;
  selections[2].position_stride = 3;
  selections[2].skip_first = 1;
  selections[3].exclude_token_ids = {sequences[0][3], sequences[2][0], sequences[2][63]};
  selections[4].sample_rows = 5;
  selections[4].seed = 99;
  selections[5] = {2, 60, 2, {sequences[0][4], 17}, 4, 3};
  for (const Selection& selection : selections) {
    CaptureRequest request = Request(kTwo, sequences);
    request.selection = selection;
    request.max_activations = 40;
    Collector collector(*engine_, request);
    ExpectSameRows(collector.ReadAll().hook_points, Expected(request, kTwo, sequences));
  }
}

TEST_F(EngineTest, Promise5SequencesOfSeveralCapturesShareAForwardPass) {
  Create();
  model_->Close();
  Collector first(*engine_, Request(kTwo, Sequences({10})));
  model_->WaitUntilBlocked();
  const auto a = Sequences({16}, 2), b = Sequences({15}, 3);
  Collector second(*engine_, Request({"hook_embed"}, a));
  Collector third(*engine_, Request({"blocks.1.hook_resid_post"}, b));
  model_->Open();
  first.ReadAll();
  ExpectSameRows(second.ReadAll().hook_points, Expected(Request({}, {}), {"hook_embed"}, a));
  ExpectSameRows(third.ReadAll().hook_points, Expected(Request({}, {}), {"blocks.1.hook_resid_post"}, b));
  const auto passes = model_->passes();
  ASSERT_EQ(passes.size(), 2u);
  EXPECT_EQ(passes[1].sequences, 2);
  EXPECT_EQ(passes[1].hook_points, (std::vector<int>{0, 2}));
}

TEST_F(EngineTest, Promise5CapturesThatBeginTogetherShareTheirFirstForwardPass) {
  options_.max_batch_delay = absl::Hours(1);  // a full batch ends the wait
  Create();
  const auto a = Sequences({32}, 2), b = Sequences({32}, 3);
  Collector first(*engine_, Request(kTwo, a));
  Collector second(*engine_, Request(kTwo, b));
  ExpectSameRows(first.ReadAll().hook_points, Expected(Request({}, {}), kTwo, a));
  ExpectSameRows(second.ReadAll().hook_points, Expected(Request({}, {}), kTwo, b));
  EXPECT_EQ(model_->passes().size(), 1u);
}

TEST_F(EngineTest, ASmallCaptureDoesNotWaitForABulkyOnesNextBatch) {
  Create();
  model_->Close();
  const auto bulk_sequences = Sequences(std::vector<int>(6, 32));  // two in a batch
  Collector bulk(*engine_, Request(kTwo, bulk_sequences));
  model_->WaitUntilBlocked();
  const auto a = Sequences({2}, 2), b = Sequences({1}, 3);
  Collector first(*engine_, Request(kTwo, a)), second(*engine_, Request(kTwo, b));
  model_->Open();
  ExpectSameRows(bulk.ReadAll().hook_points, Expected(Request({}, {}), kTwo, bulk_sequences));
  ExpectSameRows(first.ReadAll().hook_points, Expected(Request({}, {}), kTwo, a));
  ExpectSameRows(second.ReadAll().hook_points, Expected(Request({}, {}), kTwo, b));
  std::vector<int64_t> positions;
  for (const FakeModel::Pass& pass : model_->passes()) positions.push_back(pass.positions);
  EXPECT_EQ(positions, (std::vector<int64_t>{32, 2, 32, 32}));
}

TEST_F(EngineTest, Promise5DeterministicBatchesHoldAFixedNumberOfTheirOwnSequencesAndNobodyElses) {
  Create();
  model_->Close();
  Collector first(*engine_, Request(kTwo, Sequences({10})));
  model_->WaitUntilBlocked();
  const auto sequences = Sequences({20, 5, 20, 8, 20});
  CaptureRequest request = Request(kTwo, sequences);
  request.deterministic = true;  // 3 sequences in a batch of 64 tokens, as the longest has 20
  Collector deterministic(*engine_, request);
  Collector other(*engine_, Request(kTwo, Sequences({5, 5})));
  model_->Open();
  ExpectSameRows(deterministic.ReadAll().hook_points, Expected(request, kTwo, sequences));
  other.ReadAll();
  first.ReadAll();
  std::vector<int64_t> of_three;
  for (const auto& pass : model_->passes()) {
    if (pass.positions == 20) of_three.push_back(pass.sequences);
  }
  EXPECT_EQ(of_three, (std::vector<int64_t>{3, 2}));
}

TEST_F(EngineTest, ModelsThatNeedEqualLengthsGetThem) {
  Create();
  model_->NeedEqualLengths();
  const auto sequences = Sequences({5, 5, 6, 5});
  const CaptureRequest request = Request(kTwo, sequences);
  Collector collector(*engine_, request);
  ExpectSameRows(collector.ReadAll().hook_points, Expected(request, kTwo, sequences));
  EXPECT_EQ(model_->passes().size(), 3u);
}

TEST_F(EngineTest, Promise6ASequenceWiderThanTheWindowLeavesInRowGroups) {
  options_.slab_count = 8;  // the window has two slabs, 8192 bytes; a sequence has 256 x 10 x 4
  Create();
  const auto sequences = Sequences({256, 256, 3});
  const CaptureRequest request = Request({"blocks.*"}, sequences);
  Collector collector(*engine_, request);
  ExpectSameRows(collector.ReadAll().hook_points,
                 Expected(request, {kTwo[0], "blocks.1.hook_resid_post", kTwo[1]}, sequences));
}

TEST_F(EngineTest, Promise6RowsThatWaitOnTheDeviceHaveALimit) {
  options_.slab_count = 8;
  options_.max_pending_bytes = 1000;
  Create();
  Collector collector(*engine_, Request({"blocks.*"}, Sequences({256})));
  const Collected& got = collector.ReadAll();
  EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(got.ended->status.message()), HasSubstr("--max-pending-bytes"));
  EXPECT_EQ(got.ended->stop_reason, StopReason::kError);
  Collector after(*engine_, Request(kTwo, Sequences({10})));
  EXPECT_TRUE(after.ReadAll().ended->status.ok());
}

TEST_F(EngineTest, Promise6AClientThatDoesNotReadDelaysNobody) {
  Create();
  Collector stalled(*engine_, Request({"blocks.*"}, Sequences(std::vector<int>(50, 64))));
  const auto sequences = Sequences(std::vector<int>(30, 50), 5);
  const CaptureRequest request = Request(kTwo, sequences);
  for (int i = 0; i < 3; ++i) {
    Collector reader(*engine_, request);
    ExpectSameRows(reader.ReadAll().hook_points, Expected(request, kTwo, sequences));
  }
  ASSERT_TRUE(stalled.ReadOne());
  EXPECT_LE(engine_->Snapshot().slabs_filled * options_.slab_bytes, stalled.collected().started->window_bytes);
  // The stalled capture has lost nothing, either.
  ExpectSameRows(
      stalled.ReadAll().hook_points,
      Expected(Request({}, {}), {kTwo[0], "blocks.1.hook_resid_post", kTwo[1]}, Sequences(std::vector<int>(50, 64))));
}

TEST_F(EngineTest, Promise7TheSummarySaysWhatCame) {
  Create();
  const std::vector<std::vector<uint32_t>> sequences = {{0, 0, 0, 0}};
  CaptureRequest request = Request({"hook_embed"}, sequences);
  Collector collector(*engine_, request);
  const CaptureEnded& ended = *collector.ReadAll().ended;
  double sum = 0, squares = 0, norms = 0;
  for (int64_t t = 0; t < 4; ++t) {
    double row = 0;
    for (int64_t j = 0; j < 4; ++j) {
      const double value = FakeModel::Value(0, 0, t, j);
      sum += value;
      row += value * value;
    }
    squares += row;
    norms += std::sqrt(row);
  }
  EXPECT_EQ(ended.hook_points[0].rows, 4);
  EXPECT_NEAR(ended.hook_points[0].mean, sum / 16, 1e-6);
  EXPECT_NEAR(ended.hook_points[0].rms, std::sqrt(squares / 16), 1e-6);
  EXPECT_NEAR(ended.hook_points[0].mean_row_norm, norms / 4, 1e-6);
  EXPECT_EQ(ended.batches, 1);
  EXPECT_EQ(ended.mean_batch_fill, 1);
  EXPECT_GT(ended.total_time, absl::ZeroDuration());
  EXPECT_FALSE(ended.resume_token.empty());
}

TEST_F(EngineTest, StreamedSequencesComeInTheirOrder) {
  Create();
  const auto sequences = Sequences(std::vector<int>(60, 33));
  CaptureRequest request = Request(kTwo, {});
  request.source = StreamedSource{};
  Collector collector(*engine_, request);
  std::thread sender([&] {
    for (size_t i = 0; i < sequences.size(); i += 5) {
      ASSERT_TRUE(collector.Send(Tokens({sequences.begin() + i, sequences.begin() + i + 5})).ok());
    }
    collector.capture().FinishSource();
  });
  ExpectSameRows(collector.ReadAll().hook_points, Expected(request, kTwo, sequences));
  sender.join();
}

TEST_F(EngineTest, AFullBudgetIsTheReasonAlsoWhereTheSourceEndsDuringTheLastBatch) {
  Create();
  model_->Close();
  CaptureRequest request = Request(kTwo, {});
  request.source = StreamedSource{};
  request.max_activations = 10;
  Collector collector(*engine_, request);
  ASSERT_TRUE(collector.Send(Tokens(Sequences({10}))).ok());
  model_->WaitUntilBlocked();
  collector.capture().FinishSource();
  model_->Open();
  EXPECT_EQ(collector.ReadAll().ended->stop_reason, StopReason::kBudget);
}

TEST_F(EngineTest, AStreamWithoutSequencesEndsWell) {
  Create();
  CaptureRequest request = Request(kTwo, {});
  request.source = StreamedSource{};
  Collector collector(*engine_, request);
  collector.capture().FinishSource();
  EXPECT_EQ(collector.ReadAll().ended->stop_reason, StopReason::kSourceEnded);
}

TEST_F(EngineTest, ABadStreamedSequenceEndsTheCaptureAfterWhatCameBefore) {
  Create();
  const auto sequences = Sequences({10});
  CaptureRequest request = Request(kTwo, {});
  request.source = StreamedSource{};
  Collector collector(*engine_, request);
  ASSERT_TRUE(collector.Send(Tokens(sequences)).ok());
  collector.ReadChunks(2);
  EXPECT_EQ(FieldOf(collector.Send(Tokens({{7}, {1, 2, 512}}))), "tokens.sequences[2].ids[2]");
  const Collected& got = collector.ReadAll();
  EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kInvalidArgument);
  ExpectSameRows(got.hook_points, Expected(request, kTwo, sequences));
}

TEST_F(EngineTest, RowsStayInOrderWhereAHalvedBatchDoesNotFitTheWindow) {
  options_.max_batch_tokens = 1024;
  Create();
  model_->FitOnly(2);
  const auto sequences = Sequences(std::vector<int>(30, 30));
  Collector collector(*engine_, Request(kTwo, sequences));
  ExpectSameRows(collector.ReadAll().hook_points, Expected(Request(kTwo, sequences), kTwo, sequences));
}

TEST_F(EngineTest, EstimateSaysWhatTheCaptureBrings) {
  Create();
  CaptureRequest request = Request(kTwo, Sequences({30, 64, 64}));
  request.selection.position_stride = 2;
  request.max_activations_by_hook_point = {{kTwo[0], 20}};
  auto estimate = Estimate(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_FALSE(estimate->time.has_value());
  Collector collector(*engine_, request);
  const Collected& got = collector.ReadAll();
  for (int h = 0; h < 2; ++h) {
    EXPECT_EQ(estimate->hook_points[h].rows, static_cast<int64_t>(got.hook_points[h].values.size()));
    EXPECT_EQ(estimate->hook_points[h].bytes, estimate->hook_points[h].rows * (h == 0 ? 8 : 10) * 4);
  }
  EXPECT_EQ(estimate->tokens, got.ended->tokens);
  EXPECT_TRUE(Estimate(request)->time.has_value());
}

TEST_F(EngineTest, Bfloat16RowsAreRoundedToNearestEven) {
  Create();
  const auto sequences = Sequences({9});
  CaptureRequest request = Request({"hook_embed"}, sequences);
  request.dtype = Dtype::kBFloat16;
  Collector collector(*engine_, request);
  const auto expected = Expected(request, {"hook_embed"}, sequences);
  const Collected& got = collector.ReadAll();
  for (size_t i = 0; i < expected[0].values.size(); ++i) {
    for (size_t j = 0; j < 4; ++j) {
      uint32_t bits;
      std::memcpy(&bits, &expected[0].values[i][j], 4);
      bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
      float rounded;
      std::memcpy(&rounded, &bits, 4);
      EXPECT_EQ(got.hook_points[0].values[i][j], rounded);
    }
  }
}

}  // namespace
}  // namespace hookline
