#include "server/model/evaluation/score_pass.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "server/model/load.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/weight_reader.h"
#include "tests/model/parity.h"

namespace hookline {
namespace {

using Json = nlohmann::json;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const std::string kFixtures = HOOKLINE_FIXTURES;

std::unique_ptr<Model> Load(const std::string& name, bool evaluation = true) {
  ModelOptions options;
  options.path = kFixtures + "/families/" + name;
  options.device = "cpu";
  options.dtype = "float32";
  options.evaluation = evaluation;
  auto model = LoadModel(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

std::vector<uint32_t> Sequence(const std::string& name, size_t j) {
  const at::Tensor ids = ReadReference(kFixtures + "/families/" + name + "/reference.safetensors").tokens[j];
  return {ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel()};
}

std::vector<VariantScores> Score(Model& model, const std::vector<std::vector<uint32_t>>& sequences,
                                 const std::vector<Variant>& variants, const ScoreOutputs& outputs) {
  std::vector<const Variant*> pointers;
  for (const Variant& variant : variants) pointers.push_back(&variant);
  auto scores = RunScorePass(model, {sequences, pointers, &outputs});
  EXPECT_TRUE(scores.ok()) << scores.status();
  return scores.ok() ? *std::move(scores) : std::vector<VariantScores>(1 + variants.size());
}

Intervention Zero(const Model& model, const std::string& hook_point) {
  Intervention intervention;
  intervention.hook_point = model.hook_points().Find(hook_point);
  EXPECT_GE(intervention.hook_point, 0) << hook_point;
  return intervention;
}

// Makes the intervention from the JSON form of EvaluationService's message, in a file that is known to be right.
Intervention FromJson(const Json& json, const Model& model) {
  Intervention made = Zero(model, json["hookPoint"].get<std::string>());
  if (json.contains("mean")) {
    made.vector = json["mean"].value("vector", std::vector<float>());
    made.operation = made.vector.empty() ? Intervention::Operation::kBatchMean : Intervention::Operation::kMean;
  } else if (json.contains("add")) {
    made.operation = Intervention::Operation::kAdd;
    made.vector = json["add"]["vector"].get<std::vector<float>>();
    made.factor = json["add"].value("scale", 1.0);
  } else if (json.contains("scale")) {
    made.operation = Intervention::Operation::kScale;
    made.factor = json["scale"]["factor"].get<double>();
  } else if (json.contains("projectOut")) {
    made.operation = Intervention::Operation::kProjectOut;
    made.vector = json["projectOut"]["direction"].get<std::vector<float>>();
  } else if (json.contains("set")) {
    made.operation = Intervention::Operation::kSet;
    for (const Json& row : json["set"]["rows"]) {
      const auto values = row["values"].get<std::vector<float>>();
      made.vector.insert(made.vector.end(), values.begin(), values.end());
    }
  }
  made.positions = json.value("positions", std::vector<int64_t>());
  made.ignored_token_ids = json.value("ignoreTokenIds", std::vector<uint32_t>());
  made.head = json.value("head", -1);
  return made;
}

double Difference(const std::vector<float>& got, const std::vector<float>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    difference += std::pow(got[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / size);
}

TEST(ScorePassTest, LossesAndLogitsEqualTransformersForEveryFamily) {
  auto file = ReadSafetensors(kFixtures + "/evaluation/logits.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  WeightReader reader(*file);
  const auto read = [&](const std::string& name) {
    const at::Tensor values = *reader.Read(name, at::kFloat);
    return std::vector<float>(values.data_ptr<float>(), values.data_ptr<float>() + values.numel());
  };
  int families = 0;
  for (const auto& [name, tensor] : file->tensors) {
    const size_t slash = name.find("/loss");
    if (slash == std::string::npos) continue;
    const std::string fixture = name.substr(0, slash);
    SCOPED_TRACE(fixture);
    const auto model = Load(fixture);
    ASSERT_NE(model, nullptr);
    ASSERT_EQ(model->info().no_logits, "");
    const std::vector<float> logits = read(fixture + "/logits");
    ScoreOutputs outputs;
    outputs.token_loss = true;
    outputs.top_logits = static_cast<int>(model->info().vocabulary_size);
    const SequenceScore score = Score(*model, {Sequence(fixture, 1)}, {}, outputs)[0].sequences[0];
    EXPECT_LE(Difference(score.token_loss, read(name)), 1e-5);
    const size_t ids = static_cast<size_t>(outputs.top_logits);
    std::vector<float> got(logits.size());
    for (size_t row = 0; row * ids < logits.size(); ++row) {
      const TopLogits& top = score.top_logits[row * 9];
      for (size_t j = 0; j < ids; ++j) got[row * ids + top.ids[j]] = top.logits[j];
      EXPECT_TRUE(std::is_sorted(top.logits.rbegin(), top.logits.rend()));
    }
    EXPECT_LE(Difference(got, logits), 1e-5);
    ++families;
  }
  EXPECT_EQ(families, 35);
}

TEST(ScorePassTest, NanochatsLogitsHaveItsSoftCap) {
  // The files of E and G are alike, so the operator says which of the two it is.
  const std::pair<const char*, double> fixtures[] = {{"A-mha", 0},  {"Ap-gqa", 0}, {"B-mha", 0}, {"C-gqa", 0},
                                                     {"E-mha", 15}, {"E-gqa", 15}, {"F-mha", 0}, {"G-gqa", 20},
                                                     {"H-gqa", 0},  {"I-mha", 0}};
  for (const auto& [name, soft_cap] : fixtures) {
    SCOPED_TRACE(name);
    const std::string folder = kFixtures + "/nanochat/" + name;
    ModelOptions options;
    options.path = folder;
    options.logit_soft_cap = soft_cap;
    options.device = "cpu";
    options.dtype = "float32";
    auto model = LoadModel(options);
    ASSERT_TRUE(model.ok()) << model.status();
    auto file = ReadSafetensors(folder + "/reference.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    WeightReader reader(*file);
    const at::Tensor ids = *reader.Read("tokens_1", at::kLong), logits = *reader.Read("logits/1", at::kFloat);
    ScoreOutputs outputs;
    outputs.top_logits = static_cast<int>((*model)->info().vocabulary_size);
    const std::vector<uint32_t> sequence(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel());
    const SequenceScore score = Score(**model, {sequence}, {}, outputs)[0].sequences[0];
    std::vector<float> got(static_cast<size_t>(logits.numel()));
    const size_t vocabulary = static_cast<size_t>(logits.size(1));
    for (size_t t = 0; t < sequence.size(); ++t) {
      for (size_t j = 0; j < vocabulary; ++j) {
        got[t * vocabulary + score.top_logits[t].ids[j]] = score.top_logits[t].logits[j];
      }
    }
    EXPECT_LE(Difference(got, {logits.data_ptr<float>(), logits.data_ptr<float>() + logits.numel()}), 1e-5);
  }
}

TEST(ScorePassTest, AModelWhoseSoftCapIsNotKnownIsRefusedInsteadOfGuessed) {
  ModelOptions options;
  options.path = kFixtures + "/nanochat/E-mha";
  options.device = "cpu";
  auto model = LoadModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<std::vector<uint32_t>> sequences = {{1, 2}};
  const ScoreOutputs outputs;
  const auto scores = RunScorePass(**model, {sequences, {}, &outputs});
  EXPECT_EQ(scores.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(scores.status().message()), HasSubstr("variant E or G"));
  EXPECT_THAT(std::string(scores.status().message()), HasSubstr("--logit-soft-cap"));
  options.logit_soft_cap = 30;
  EXPECT_THAT(std::string(LoadModel(options).status().message()),
              HasSubstr("neither 15 (variant E) nor 20 (variant G)"));
  options.logit_soft_cap = 15;
  options.path = kFixtures + "/nanochat/H-gqa";
  EXPECT_THAT(std::string(LoadModel(options).status().message()), HasSubstr("does not apply"));
}

TEST(ScorePassTest, AModelLoadedForCapturesAloneHasNoLogitsAndSaysWhy) {
  const auto model = Load("llama_gqa", /*evaluation=*/false);
  ASSERT_NE(model, nullptr);
  const std::vector<std::vector<uint32_t>> sequences = {{1, 2}};
  ScoreOutputs outputs;
  const auto scores = RunScorePass(*model, {sequences, {}, &outputs});
  EXPECT_EQ(scores.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(scores.status().message()), HasSubstr("--no-evaluation"));
  // Rows are available all the same.
  outputs.rows_only = true;
  outputs.hook_points = {0};
  EXPECT_THAT(Score(*model, sequences, {}, outputs)[0].sequences[0].rows[0], SizeIs(2 * 64));
}

// Covers each hook point, each operation, heads, positions, ignored ids and several interventions at once, as one batch
// of variants that leave the clean pass at different blocks.
TEST(ScorePassTest, InterventionsHaveTheEffectThatTransformerLensHooksHave) {
  std::ifstream stream(kFixtures + "/evaluation/interventions.json");
  const Json recorded = Json::parse(stream);
  ASSERT_THAT(recorded, SizeIs(4));
  for (const Json& of_fixture : recorded) {
    const auto fixture = of_fixture["fixture"].get<std::string>();
    SCOPED_TRACE(fixture);
    const auto model = Load(fixture);
    ASSERT_NE(model, nullptr);
    std::vector<Variant> variants;
    for (const Json& one : of_fixture["cases"]) {
      Variant variant;
      for (const Json& step : one["interventions"]) variant.interventions.push_back(FromJson(step, *model));
      variants.push_back(std::move(variant));
    }
    ASSERT_GE(variants.size(), 30u);
    ScoreOutputs outputs;
    outputs.token_loss = outputs.kl = true;
    const std::vector<VariantScores> scores = Score(*model, {Sequence(fixture, 1)}, variants, outputs);
    for (size_t v = 0; v < variants.size(); ++v) {
      const Json& expected = of_fixture["cases"][v];
      SCOPED_TRACE(expected["interventions"].dump().substr(0, 200));
      const SequenceScore& score = scores[1 + v].sequences[0];
      EXPECT_LE(Difference(score.token_loss, expected["tokenLoss"].get<std::vector<float>>()), 2e-5);
      const auto kl = expected["kl"].get<std::vector<float>>();
      for (size_t t = 0; t < kl.size(); ++t) EXPECT_NEAR(score.kl[t], kl[t], 1e-5 + 1e-4 * kl[t]) << t;
    }
  }
}

// Some of these hook points have no TransformerLens hook to compare with; here an intervention must at least
// take effect.
TEST(ScorePassTest, EveryHookPointThatIsNotAnObservationTakesEffect) {
  for (const char* fixture : {"deepseek_v3", "qwen3_5_moe", "gpt_oss", "gemma4", "opt", "olmo2", "gptj", "phi"}) {
    const auto model = Load(fixture);
    ASSERT_NE(model, nullptr);
    const std::vector<uint32_t> sequence = Sequence(fixture, 1);
    ScoreOutputs outputs;
    outputs.kl = true;
    for (int i = 0; i < model->hook_points().size(); ++i) {
      const HookPoint& point = model->hook_points()[i];
      SCOPED_TRACE(std::string(fixture) + " " + point.name);
      Intervention intervention;
      intervention.hook_point = i;
      intervention.operation = Intervention::Operation::kAdd;
      intervention.vector.assign(static_cast<size_t>(point.width), 0);
      for (size_t j = 0; j < intervention.vector.size(); j += 2) intervention.vector[j] = 1;
      // The same vector on all keys would change no softmax, so only some positions get it.
      intervention.positions = {1, 4, 9};
      const double kl = Score(*model, {sequence}, {{"", {intervention}}}, outputs)[1].sequences[0].kl_sum;
      if (point.observation) {
        EXPECT_NEAR(kl, 0, 1e-5);  // a batch of variants rounds differently than the clean pass
      } else if (fixture == std::string("gemma4") && absl::EndsWith(point.name, ".hook_scale")) {
        continue;  // the norms of queries, keys, values and outputs undo a change of the scale
      } else {
        EXPECT_GT(kl, 1e-4);
      }
    }
  }
}

TEST(ScorePassTest, BlocksBeforeTheFirstInterventionAreComputedOnceForAllVariants) {
  const auto model = Load("gpt2");
  ASSERT_NE(model, nullptr);
  const std::vector<uint32_t> sequence = Sequence("gpt2", 1);
  const std::vector<Variant> variants = {{"a", {Zero(*model, "blocks.2.hook_resid_post")}},
                                         {"b", {Zero(*model, "blocks.2.mlp.hook_post")}}};
  ScoreOutputs outputs;
  outputs.hook_points = {model->hook_points().Find("blocks.1.hook_resid_post"),
                         model->hook_points().Find("blocks.2.hook_resid_post")};
  const int64_t before = model->blocks_executed();
  const std::vector<VariantScores> scores = Score(*model, {sequence}, variants, outputs);
  EXPECT_EQ(model->blocks_executed() - before, 3);
  // Rows before the fork are those of the clean pass; rows after it are the variant's own.
  EXPECT_EQ(scores[1].sequences[0].rows[0], scores[0].sequences[0].rows[0]);
  EXPECT_THAT(scores[1].sequences[0].rows[1], Each(0.0f));
  EXPECT_NE(scores[2].sequences[0].rows[1], scores[0].sequences[0].rows[1]);
}

TEST(ScorePassTest, RowsAloneEndThePassAtTheDeepestHookPoint) {
  const auto model = Load("gpt2");
  ASSERT_NE(model, nullptr);
  ScoreOutputs outputs;
  outputs.rows_only = true;
  outputs.hook_points = {model->hook_points().Find("blocks.1.hook_resid_post")};
  const int64_t before = model->blocks_executed();
  const std::vector<VariantScores> scores =
      Score(*model, {{1, 2, 3}}, {{"a", {Zero(*model, "blocks.1.attn.hook_z")}}}, outputs);
  EXPECT_EQ(model->blocks_executed() - before, 2);
  EXPECT_THAT(scores[1].sequences[0].rows[0], SizeIs(3 * 48));
  EXPECT_THAT(scores[1].sequences[0].token_loss, IsEmpty());
}

TEST(ScorePassTest, SequencesOfOneBatchScoreAsAlone) {
  for (const char* fixture : {"gpt2", "gemma4", "phi3", "qwen3_5"}) {
    SCOPED_TRACE(fixture);
    const auto model = Load(fixture);
    ASSERT_NE(model, nullptr);
    const std::vector<Variant> variants = {{"a", {Zero(*model, "blocks.0.hook_mlp_out")}},
                                           {"b", {Zero(*model, "blocks.1.hook_resid_post")}}};
    const std::vector<std::vector<uint32_t>> all = {Sequence(fixture, 1), Sequence(fixture, 0), Sequence(fixture, 2)};
    ScoreOutputs outputs;
    outputs.token_loss = outputs.kl = true;
    const std::vector<VariantScores> together = Score(*model, all, variants, outputs);
    for (size_t i = 0; i < all.size(); ++i) {
      const std::vector<VariantScores> alone = Score(*model, {all[i]}, variants, outputs);
      for (size_t v = 0; v < alone.size(); ++v) {
        const SequenceScore &one = alone[v].sequences[0], &other = together[v].sequences[i];
        EXPECT_NEAR(other.loss_sum, one.loss_sum, 1e-4 * (1 + one.loss_sum));
        EXPECT_NEAR(other.kl_sum, one.kl_sum, 1e-4 * (1 + one.kl_sum));
        EXPECT_EQ(other.token_loss.size(), all[i].size() - 1);
      }
    }
  }
}

TEST(ScorePassTest, ReplacedRowsAreCountedWithoutPadding) {
  const auto model = Load("gpt2");
  ASSERT_NE(model, nullptr);
  Intervention mean = Zero(*model, "blocks.1.hook_resid_post");
  mean.operation = Intervention::Operation::kBatchMean;
  const std::vector<std::vector<uint32_t>> sequences = {{5, 6, 7, 8, 9}, {10, 11}};
  const std::vector<VariantScores> scores = Score(*model, sequences, {{"mean", {mean}}}, {});
  const ReplacedRows& replaced = scores[1].replaced[0];
  EXPECT_EQ(replaced.rows, 7);
  // The mean explains none of the variance about the mean.
  EXPECT_NEAR(replaced.ExplainedVariance(), 0, 1e-6);
}

}  // namespace
}  // namespace hookline
