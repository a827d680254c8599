#include "gmock/gmock.h"
#include "server/base/status.h"
#include "tests/engine/engine_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

class ResumeTest : public EngineTest {
 protected:
  // Cuts the capture after each of its chunks, resumes with that chunk's token, and expects the whole to be as if
  // nothing had happened.
  void CutEverywhere(const CaptureRequest& request, const std::vector<std::string>& names,
                     const std::vector<std::vector<uint32_t>>& sequences) {
    const auto expected = Expected(request, names, sequences);
    size_t chunks;
    {
      Collector whole(*engine_, request);
      chunks = whole.ReadAll().chunks.size();
      ASSERT_TRUE(whole.collected().ended->status.ok()) << whole.collected().ended->status;
    }
    ASSERT_GT(chunks, 4u);
    for (size_t cut = 0; cut <= chunks; ++cut) {
      Collected got;
      std::string token;
      {
        Collector first(*engine_, request);
        first.ReadOne();
        token = first.collected().started->resume_token;
        if (cut > 0) token = first.ReadChunks(static_cast<int>(cut)).chunks.back().resume_token;
        got = first.collected();
      }
      CaptureRequest again = request;
      again.resume_token = token;
      if (auto* tokens = std::get_if<TokenBatch>(&again.source)) {
        // The probe shows from which sequence on the server wants them; any sequences will do for it.
        Collector probe(*engine_, again);
        probe.ReadOne();
        const int64_t next = probe.collected().started->next_sequence;
        tokens->RemoveFirst(std::min(next, tokens->sequences()));
      }
      Collector second(*engine_, again);
      ASSERT_TRUE(second.status().ok()) << second.status();
      const Collected& rest = second.ReadAll();
      for (size_t h = 0; h < names.size(); ++h) {
        EXPECT_EQ(rest.started->hook_points[h].rows, static_cast<int64_t>(got.hook_points[h].values.size()));
        const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
        append(got.hook_points[h].values, rest.hook_points[h].values);
        append(got.hook_points[h].sequence, rest.hook_points[h].sequence);
        append(got.hook_points[h].position, rest.hook_points[h].position);
        append(got.hook_points[h].token_id, rest.hook_points[h].token_id);
        EXPECT_EQ(rest.ended->hook_points[h].rows, static_cast<int64_t>(expected[h].values.size()));
      }
      ExpectSameRows(got.hook_points, expected);
      if (HasFailure()) FAIL() << "cut after chunk " << cut << " of " << chunks;
    }
  }
};

const std::vector<std::string> kNames = {"hook_embed", "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"};

TEST_F(ResumeTest, ContinuesExactlyAfterEveryChunk) {
  options_.slab_count = 8;  // small windows, so that sequences are cut
  Create();
  const auto sequences = Sequences({256, 3, 200, 64, 30});
  CutEverywhere(Request(kNames, sequences), kNames, sequences);
}

TEST_F(ResumeTest, ContinuesExactlyWithBudgetsAndSelection) {
  options_.slab_count = 8;
  Create();
  const auto sequences = Sequences({256, 3, 200, 64, 30});
  CaptureRequest request = Request(kNames, sequences);
  request.selection = {1, 0, 2, {sequences[0][5]}, 60, 4};
  request.max_activations = 90;
  request.max_activations_by_hook_point = {{"blocks.0.hook_resid_post", 70}, {"hook_embed", 31}};
  CutEverywhere(request, kNames, sequences);
}

TEST_F(ResumeTest, DeterministicCapturesRunTheCutBatchAgain) {
  options_.slab_count = 8;
  Create();
  const auto sequences = Sequences({30, 11, 28, 64, 64, 10, 9, 8, 64});
  CaptureRequest request = Request(kNames, sequences);
  request.deterministic = true;
  CutEverywhere(request, kNames, sequences);
}

// A batch keeps its shape, whichever of its rows are asked for or still missing.
TEST_F(ResumeTest, DeterministicBatchesKeepTheirShapeWhateverIsWantedOfThem) {
  options_.slab_count = 8;
  Create();
  const auto sequences = Sequences({21, 21, 1});
  CaptureRequest request = Request({"hook_embed", "blocks.*"}, sequences);
  request.deterministic = true;
  request.selection.skip_first = 1;  // leaves no row of the last sequence
  const auto shapes = [this] {
    std::vector<std::pair<int64_t, int64_t>> shapes;
    for (const FakeModel::Pass& pass : model_->passes()) shapes.emplace_back(pass.sequences, pass.positions);
    model_->ForgetPasses();
    return shapes;
  };
  const std::vector<std::pair<int64_t, int64_t>> whole = {{3, 21}};
  Collector first(*engine_, request);
  first.ReadAll();
  EXPECT_EQ(shapes(), whole);
  EXPECT_EQ(first.collected().ended->sequences, 3);
  ASSERT_EQ(first.collected().chunks.size(), 8u);  // two row groups, one for each sequence

  CaptureRequest again = request;
  again.resume_token = first.collected().chunks[3].resume_token;
  Collector rest(*engine_, again);
  EXPECT_EQ(rest.ReadAll().chunks.size(), 4u);
  EXPECT_EQ(shapes(), whole);

  CaptureRequest few = request;
  few.max_activations = 5;
  Collector little(*engine_, few);
  little.ReadAll();
  EXPECT_EQ(shapes(), whole);
}

TEST_F(ResumeTest, ABatchOfATokenIsNoLargerThanTheServerAllows) {
  Create();
  const auto sequences = Sequences({20, 20, 20, 20, 20, 20, 20});
  CaptureRequest request = Request({"hook_embed"}, sequences);
  request.deterministic = true;
  std::string token;
  {
    Collector first(*engine_, request);
    token = first.ReadChunks(1).chunks.back().resume_token;
  }
  model_ = nullptr;
  engine_.reset();
  options_.max_batch_tokens = 40;
  Create();
  request.resume_token = token;
  request.source = Tokens({sequences.begin() + 3, sequences.end()});
  Collector rest(*engine_, request);
  ASSERT_TRUE(rest.status().ok()) << rest.status();
  EXPECT_EQ(rest.ReadAll().ended->hook_points[0].rows, 140);
  for (const FakeModel::Pass& pass : model_->passes()) EXPECT_LE(pass.sequences, 2);
}

TEST_F(ResumeTest, ATokenFromTheEndAnswersStartedAndSummary) {
  Create();
  CaptureRequest request = Request(kNames, Sequences({20, 20}));
  Collector whole(*engine_, request);
  request.resume_token = whole.ReadAll().ended->resume_token;
  request.source = TokenBatch{};
  Collector again(*engine_, request);
  ASSERT_TRUE(again.status().ok()) << again.status();
  const Collected& got = again.ReadAll();
  EXPECT_TRUE(got.started.has_value());
  EXPECT_TRUE(got.chunks.empty());
  EXPECT_EQ(got.ended->hook_points[0].rows, 40);
  EXPECT_EQ(got.ended->resume_token, request.resume_token);
}

TEST_F(ResumeTest, ATokenOfSomethingElseSaysWhatDiffers) {
  Create();
  const CaptureRequest request = Request(kNames, Sequences({20}));
  Collector whole(*engine_, request);
  const std::string token = whole.ReadAll().ended->resume_token;
  const auto refusal = [&](CaptureRequest changed) {
    changed.resume_token = token;
    Collector collector(*engine_, changed);
    EXPECT_EQ(FieldOf(collector.status()), "resume_token");
    return std::string(collector.status().message());
  };
  CaptureRequest changed = request;
  changed.hook_points.pop_back();
  EXPECT_THAT(refusal(changed), HasSubstr("another request"));
  changed = request;
  changed.max_activations = 7;
  EXPECT_THAT(refusal(changed), HasSubstr("another request"));
  changed = request;
  changed.selection.seed = 1;
  EXPECT_THAT(refusal(changed), HasSubstr("another request"));
}

TEST_F(ResumeTest, DamagedTokensAreRefusedWhateverTheDamage) {
  Create();
  CaptureRequest request = Request(kNames, Sequences({20}));
  Collector whole(*engine_, request);
  const std::string token = whole.ReadAll().ended->resume_token;
  for (size_t i = 0; i < token.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      request.resume_token = token;
      request.resume_token[i] = static_cast<char>(request.resume_token[i] ^ (1 << bit));
      EXPECT_EQ(Collector(*engine_, request).status().code(), absl::StatusCode::kInvalidArgument);
    }
    request.resume_token = token.substr(0, i);
    if (i > 0) {
      EXPECT_EQ(Collector(*engine_, request).status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

}  // namespace
}  // namespace hookline
