#include "server/capture/score_plan.h"

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "server/base/status.h"
#include "server/engine/options.h"
#include "tests/support/random_decoder.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Returns a model of two blocks of width 16 with 2 heads, and 100 ids.
std::unique_ptr<Model> SmallModel() {
  RandomDecoderOptions options;
  options.layers = 2;
  options.width = 16;
  options.heads = 2;
  options.vocabulary_size = 100;
  options.context_length = 64;
  return RandomDecoder(options);
}

CaptureLimits Limits(const Model& model) {
  EngineOptions options;
  options.max_batch_tokens = 64;
  return LimitsFor(options, model.info());
}

InterventionRequest Zero(const std::string& hook_point) {
  InterventionRequest made;
  made.hook_point = hook_point;
  made.operation = ZeroRows{};
  return made;
}

// Returns a request with sequences of these lengths.
ScoreRequest Request(const std::vector<int>& lengths) {
  TokenBatch tokens;
  for (int length : lengths) {
    for (int t = 0; t < length; ++t) tokens.Append(static_cast<uint32_t>(t));
    tokens.EndSequence();
  }
  ScoreRequest request;
  request.source = std::move(tokens);
  return request;
}

class ScorePlanTest : public ::testing::Test {
 protected:
  absl::StatusOr<ScorePlan> Plan(ScoreRequest request) {
    return MakeScorePlan(std::move(request), *model_, Limits(*model_), {});
  }

  const std::unique_ptr<Model> model_ = SmallModel();
};

TEST_F(ScorePlanTest, SequencesShareAPassAsFarAsTheBatchReachesWithAllVariants) {
  ScoreRequest request = Request({8, 8, 8, 8});
  request.variants = {{"a", {Zero("blocks.0.hook_mlp_out")}}};
  const auto plan = Plan(std::move(request));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const ScoreUnit unit = plan->Unit(0, 0);
  EXPECT_EQ(unit.sequences, 4);
  EXPECT_EQ(unit.variants, 1u);
  EXPECT_EQ(unit.positions, 64);
}

TEST_F(ScorePlanTest, MoreVariantsThanABatchHoldsTakeSeveralPassesOfOneSequence) {
  ScoreRequest request = Request({20, 4});
  for (const char* name : {"a", "b", "c"}) request.variants.push_back({name, {Zero("hook_embed")}});
  const auto plan = Plan(std::move(request));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->Unit(0, 0).sequences, 1);
  EXPECT_EQ(plan->Unit(0, 0).variants, 2u);
  EXPECT_EQ(plan->Unit(0, 2).variants, 1u);
  EXPECT_EQ(plan->Unit(1, 0).sequences, 1);
  EXPECT_EQ(plan->Unit(1, 0).variants, 3u);
}

TEST_F(ScorePlanTest, AMeanOverTheBatchKeepsAllSequencesInOnePassOrIsRefused) {
  InterventionRequest mean = Zero("hook_embed");
  mean.operation = MeanRows{};
  ScoreRequest request = Request({8, 8});
  request.variants = {{"mean", {mean}}};
  EXPECT_TRUE(Plan(request).ok());
  request.source = Request({40, 40}).source;
  const absl::Status status = Plan(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--max-batch-tokens"));
}

TEST_F(ScorePlanTest, RowsThatAreSetFollowTheirPositionsInAnyOrder) {
  InterventionRequest set = Zero("blocks.0.attn.hook_z");
  set.head = 1;
  set.operation = SetRows{{std::vector<float>(8, 1), std::vector<float>(8, 2)}};
  set.positions = {5, 3};
  ScoreRequest request = Request({8});
  request.variants = {{"set", {set}}};
  const auto plan = Plan(std::move(request));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Intervention& made = plan->variants[0].interventions[0];
  EXPECT_THAT(made.positions, ElementsAre(3, 5));
  EXPECT_EQ(made.vector.front(), 2);
  EXPECT_EQ(made.vector.back(), 1);
}

TEST_F(ScorePlanTest, APassThatPausesHasAQuarterOfTheRoomOrIsRefused) {
  InterventionRequest client = Zero("blocks.0.hook_mlp_out");
  client.operation = ClientRows{};
  ScoreRequest request = Request({4, 4, 4, 4});
  request.variants = {{"client", {client}}};
  request.client_answers = true;
  CaptureLimits limits = Limits(*model_);
  limits.max_paused_tokens = 64;
  const auto plan = MakeScorePlan(request, *model_, limits, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->Unit(0, 0).sequences, 2);
  EXPECT_EQ(plan->Unit(0, 0).positions, 16);
  request.source = Request({9}).source;
  const absl::Status status = MakeScorePlan(request, *model_, limits, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("18 positions, more than the 16"));
}

TEST_F(ScorePlanTest, VariantsAtTheSamePlacesShareTheirZeroPass) {
  InterventionRequest half = Zero("blocks.0.hook_mlp_out");
  half.operation = ScaleRows{0.5};
  ScoreRequest request = Request({8});
  request.loss_recovered = true;
  request.variants = {{"zero", {Zero("blocks.0.hook_mlp_out")}}, {"half", {half}}, {"other", {Zero("hook_embed")}}};
  const auto plan = Plan(std::move(request));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->sent_variants, 3u);
  EXPECT_THAT(plan->variants, SizeIs(5));
  EXPECT_THAT(plan->zero_of, ElementsAre(3, 3, 4));
}

struct Refused {
  const char* name;
  const char* field;
  const char* message;
  std::function<void(ScoreRequest&)> change;
};

class RefusedScoreTest : public ScorePlanTest, public ::testing::WithParamInterface<Refused> {};

TEST_P(RefusedScoreTest, NamesTheFieldAndWhatWouldBeAccepted) {
  ScoreRequest request = Request({8});
  request.variants = {{"a", {Zero("blocks.0.hook_mlp_out")}}};
  GetParam().change(request);
  const absl::Status status = Plan(std::move(request)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(FieldOf(status), GetParam().field) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

InterventionRequest& First(ScoreRequest& request) { return request.variants[0].interventions[0]; }

INSTANTIATE_TEST_SUITE_P(
    , RefusedScoreTest,
    ::testing::Values(
        Refused{"AShuffledDataset", "dataset.shuffle_seed", "leave it out",
                [](ScoreRequest& r) { r.source = DatasetSource{"ids", 8, 0, 0, std::nullopt, 1}; }},
        Refused{"Epochs", "dataset.epochs", "leave it out",
                [](ScoreRequest& r) { r.source = DatasetSource{"ids", 8, 0, 0, std::nullopt, std::nullopt, 2}; }},
        Refused{"NoSource", "source", "tokens, text, dataset", [](ScoreRequest& r) { r.source = std::monostate(); }},
        Refused{"UnknownHookPoint", "variants[0].interventions[0].hook_point", "blocks.0.hook_mlp_out",
                [](ScoreRequest& r) { First(r).hook_point = "blocks.0.hook_mlp_ou"; }},
        Refused{"NoOperation", "variants[0].interventions[0]", "project_out",
                [](ScoreRequest& r) { First(r).operation = std::monostate(); }},
        Refused{"WrongWidth", "variants[0].interventions[0].add.vector", "has 3 values, but must have 16",
                [](ScoreRequest& r) {
                  First(r).operation = AddVector{{1, 2, 3}, 1};
                }},
        Refused{"NotFinite", "variants[0].interventions[0].mean.vector[4]", "not finite",
                [](ScoreRequest& r) {
                  std::vector<float> vector(16, 0);
                  vector[4] = NAN;
                  First(r).operation = MeanRows{vector};
                }},
        Refused{"NoDirection", "variants[0].interventions[0].project_out.direction", "zero",
                [](ScoreRequest& r) { First(r).operation = ProjectOut{std::vector<float>(16, 0)}; }},
        Refused{"RowsWithoutPositions", "variants[0].interventions[0].set.rows", "2 rows for 0 positions",
                [](ScoreRequest& r) {
                  First(r).operation = SetRows{{std::vector<float>(16, 0), std::vector<float>(16, 0)}};
                }},
        Refused{"PositionTooFar", "variants[0].interventions[0].positions[1]", "0 to 7",
                [](ScoreRequest& r) {
                  First(r).positions = {2, 8};
                }},
        Refused{"PositionTwice", "variants[0].interventions[0].positions[1]", "twice",
                [](ScoreRequest& r) {
                  First(r).positions = {2, 2};
                }},
        Refused{"NoHeads", "variants[0].interventions[0].head", "not divided into heads",
                [](ScoreRequest& r) { First(r).head = 0; }},
        Refused{"HeadTooLarge", "variants[0].interventions[0].head", "0 to 1",
                [](ScoreRequest& r) {
                  First(r).hook_point = "blocks.0.attn.hook_z";
                  First(r).head = 2;
                }},
        Refused{"ClientRowsInScore", "variants[0].interventions[0].client", "only in Substitute",
                [](ScoreRequest& r) { First(r).operation = ClientRows{}; }},
        Refused{"NothingToAnswer", "variants", "call Score instead", [](ScoreRequest& r) { r.client_answers = true; }},
        Refused{"ClientRowsTwice", "variants[0].interventions[1].client", "give only one",
                [](ScoreRequest& r) {
                  r.client_answers = true;
                  First(r).operation = ClientRows{};
                  r.variants[0].interventions.push_back(First(r));
                }},
        Refused{"NoInterventions", "variants[0].interventions", "give 1 to",
                [](ScoreRequest& r) { r.variants[0].interventions.clear(); }},
        Refused{"NameTwice", "variants[1].name", "another variant",
                [](ScoreRequest& r) { r.variants.push_back(r.variants[0]); }},
        Refused{"NoName", "variants[0].name", "1 to 128", [](ScoreRequest& r) { r.variants[0].name.clear(); }},
        Refused{"TooManyVariants", "variants", "more than 64",
                [](ScoreRequest& r) { r.variants.resize(65, r.variants[0]); }},
        Refused{"TopTooLarge", "outputs.top_logits", "0 to 100", [](ScoreRequest& r) { r.top_logits = 101; }},
        Refused{"UnknownToken", "outputs.log_probability_token_ids[0]", "vocabulary",
                [](ScoreRequest& r) { r.log_probability_token_ids = {100}; }},
        Refused{"RowsOnlyWithLosses", "outputs.rows_only", "leave one of them out",
                [](ScoreRequest& r) {
                  r.rows_only = r.kl = true;
                  r.hook_points = {"hook_embed"};
                }},
        Refused{"RowsOnlyOfNothing", "outputs.rows_only", "names none", [](ScoreRequest& r) { r.rows_only = true; }},
        Refused{"UnknownOutput", "outputs.hook_points[0]", "hook_embed",
                [](ScoreRequest& r) { r.hook_points = {"hook_embe"}; }}),
    [](const ::testing::TestParamInfo<Refused>& info) { return info.param.name; });

}  // namespace
}  // namespace hookline
