// Tests rows that a client sends while the pass waits (Substitute): in one pass, and through a whole engine.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/base/status.h"
#include "server/model/evaluation/score_pass.h"
#include "server/model/load.h"
#include "tests/evaluation/running_scores.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using Operation = Intervention::Operation;

// --- One pass.

std::unique_ptr<Model> Load(const std::string& fixture, std::vector<DictionaryOptions> dictionaries = {}) {
  ModelOptions options;
  options.dictionaries = std::move(dictionaries);
  options.path = std::string(HOOKLINE_FIXTURES) + "/" + fixture;
  options.device = "cpu";
  options.dtype = "float32";
  auto model = LoadModel(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

Intervention At(int hook_point, Operation operation) {
  Intervention made;
  made.hook_point = hook_point;
  made.operation = operation;
  return made;
}

Intervention At(const Model& model, const std::string& hook_point, Operation operation) {
  const int found = model.hook_points().Find(hook_point);
  EXPECT_GE(found, 0) << hook_point;
  return At(found, operation);
}

using Respond = std::function<void(AskedRows& asked)>;

// Runs the pass and answers all that it asks for.
std::vector<VariantScores> RunPass(Model& model, const std::vector<std::vector<uint32_t>>& sequences,
                                   const std::vector<Variant>& variants, const ScoreOutputs& outputs,
                                   const Respond& respond) {
  std::vector<const Variant*> pointers;
  for (const Variant& variant : variants) pointers.push_back(&variant);
  auto pass = ScorePass::Make(model, {sequences, pointers, &outputs});
  EXPECT_TRUE(pass.ok()) << pass.status();
  absl::Status status = (*pass)->Run();
  while (status.ok() && !(*pass)->asked.empty()) {
    for (AskedRows& asked : (*pass)->asked) {
      asked.mask.assign(sequences[asked.sequence].size(), true);
      respond(asked);
    }
    status = (*pass)->Run();
  }
  EXPECT_TRUE(status.ok()) << status;
  return std::move((*pass)->scores);
}

void ExpectSame(const SequenceScore& one, const SequenceScore& other) {
  ASSERT_EQ(one.token_loss.size(), other.token_loss.size());
  for (size_t t = 0; t < one.token_loss.size(); ++t) {
    EXPECT_NEAR(one.token_loss[t], other.token_loss[t], 1e-5 * (1 + other.token_loss[t])) << t;
  }
  EXPECT_NEAR(one.kl_sum, other.kl_sum, 1e-4 * (1 + other.kl_sum));
  ASSERT_EQ(one.rows.size(), other.rows.size());
  for (size_t i = 0; i < one.rows.size(); ++i) {
    ASSERT_EQ(one.rows[i].size(), other.rows[i].size());
    for (size_t j = 0; j < one.rows[i].size(); ++j) {
      EXPECT_NEAR(one.rows[i][j], other.rows[i][j], 1e-4 * (1 + std::abs(other.rows[i][j]))) << i << ' ' << j;
    }
  }
}

const std::vector<std::vector<uint32_t>> kSequences = {{5, 6, 7, 8, 9, 11, 3}, {10, 11, 4}};

// The models have everything that a paused pass keeps: keys and values of other layers, embeddings per layer and of
// pairs of tokens, terms of the embedding and of the middle block's output.
TEST(SubstitutePassTest, AClientsRowsHaveTheEffectOfAnAdditionAtEveryHookPoint) {
  for (const char* fixture : {"families/gpt2", "families/gemma4", "families/phi3", "families/deepseek_v3",
                              "nanochat/H-gqa", "nanochat/I-mha"}) {
    const auto model = Load(fixture);
    ASSERT_NE(model, nullptr);
    ScoreOutputs outputs;
    outputs.token_loss = outputs.kl = true;
    for (int i = 0; i < model->hook_points().size(); ++i) {
      const HookPoint& point = model->hook_points()[i];
      if (point.observation) continue;
      SCOPED_TRACE(std::string(fixture) + " " + point.name);
      Intervention add = At(i, Operation::kAdd);
      for (int64_t j = 0; j < point.width; ++j) add.vector.push_back(static_cast<float>(j % 2));
      add.positions = {1, 4};
      const auto expected =
          RunPass(*model, kSequences, {{"add", {add}}}, outputs, [](AskedRows&) { ADD_FAILURE() << "asked"; });
      const auto got =
          RunPass(*model, kSequences, {{"client", {At(i, Operation::kClient)}}}, outputs, [&](AskedRows& asked) {
            const size_t width = static_cast<size_t>(point.width);
            for (size_t t = 0; t < asked.mask.size(); ++t) {
              asked.mask[t] = t == 1 || t == 4;
              // Rows that the mask leaves out have no effect, whatever their values are.
              for (size_t j = 0; j < width; ++j) {
                float& value = asked.rows[t * width + j];
                value = asked.mask[t] ? value + static_cast<float>(j % 2) : 1e9F;
              }
            }
          });
      for (size_t s = 0; s < kSequences.size(); ++s) ExpectSame(got[1].sequences[s], expected[1].sequences[s]);
    }
  }
}

TEST(SubstitutePassTest, SeveralHookPointsAreAskedInTheOrderOfDepthBesideOtherVariants) {
  const auto model = Load("families/gpt2");
  ASSERT_NE(model, nullptr);
  // The hook points are in one block (one head of it), in another block and after the blocks; a variant that left
  // before runs beside them.
  const char* const points[] = {"blocks.1.attn.hook_z", "blocks.1.hook_mlp_out", "blocks.2.hook_resid_post",
                                "ln_final.hook_normalized"};
  Variant client{"client", {}}, scaled{"scaled", {}};
  for (int i = 3; i >= 0; --i) {
    client.interventions.push_back(At(*model, points[i], Operation::kClient));
    scaled.interventions.push_back(At(*model, points[i], Operation::kScale));
    scaled.interventions.back().factor = 0.5;
  }
  client.interventions.back().head = scaled.interventions.back().head = 1;
  const Variant early{"early", {At(*model, "blocks.0.hook_mlp_out", Operation::kZero)}};
  Variant both{"both", {At(*model, "blocks.1.hook_mlp_out", Operation::kZero)}};
  Intervention more = At(*model, "blocks.1.hook_mlp_out", Operation::kAdd);
  more.vector.assign(48, 1);
  both.interventions.push_back(more);
  Variant both_client = both;
  both_client.interventions.push_back(At(*model, "blocks.1.hook_mlp_out", Operation::kClient));
  both.interventions.push_back(At(*model, "blocks.1.hook_mlp_out", Operation::kScale));
  both.interventions.back().factor = 0.5;
  ScoreOutputs outputs;
  outputs.token_loss = outputs.kl = true;
  outputs.hook_points = {model->hook_points().Find("blocks.1.hook_resid_post"),
                         model->hook_points().Find("blocks.2.hook_resid_post")};
  std::vector<int> order;
  const std::vector<Variant> variants = {client, early, both_client};
  const auto got = RunPass(*model, kSequences, variants, outputs, [&](AskedRows& asked) {
    if (asked.variant == 0) order.push_back(variants[0].interventions[asked.intervention].hook_point);
    for (float& value : asked.rows) value *= 0.5F;
  });
  const auto expected = RunPass(*model, kSequences, {scaled, early, both}, outputs, [](AskedRows&) {});
  for (size_t v = 0; v < got.size(); ++v) {
    SCOPED_TRACE(v);
    for (size_t s = 0; s < kSequences.size(); ++s) ExpectSame(got[v].sequences[s], expected[v].sequences[s]);
  }
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_THAT(order, SizeIs(4 * kSequences.size()));
  // Rows are counted once, though parts of the pass ran twice.
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(got[1].replaced[i].rows, expected[1].replaced[i].rows);
    EXPECT_NEAR(got[1].replaced[i].squared_error, expected[1].replaced[i].squared_error, 1e-4);
  }
  EXPECT_EQ(got[2].replaced[0].rows, 10);
}

TEST(SubstitutePassTest, OnlyTheBlockOfThePauseIsComputedAgain) {
  const auto model = Load("families/gpt2");
  ASSERT_NE(model, nullptr);
  const int64_t before = model->blocks_executed();
  RunPass(*model, kSequences, {{"a", {At(*model, "blocks.1.hook_resid_post", Operation::kClient)}}}, {},
          [](AskedRows&) {});
  EXPECT_EQ(model->blocks_executed() - before, 4);  // blocks 0 and 1, then 1 and 2
}

// The transcoder reads rows of block 0, and writes some of block 1, where the pass pauses.
TEST(SubstitutePassTest, WhatATranscoderHasReadIsKeptWhileThePassPauses) {
  const std::string folder = std::string(HOOKLINE_FIXTURES) + "/evaluation/dictionaries/gpt2_transcoder_across";
  const auto model = Load("families/gpt2", {{"across", folder, ""}});
  ASSERT_NE(model, nullptr);
  const char* const middle = "blocks.1.hook_resid_mid";
  const char* const output = "blocks.1.mlp.hook_post";
  Intervention transcoder = At(*model, output, Operation::kDictionary);
  transcoder.dictionary = 0;
  const auto variants = [&](Operation operation) {
    Intervention between = At(*model, middle, operation), after = At(*model, output, operation);
    between.factor = after.factor = 0.5;
    const Intervention before = At(*model, "blocks.0.hook_mlp_out", Operation::kZero);
    return std::vector<Variant>{
        {"between", {between, transcoder}}, {"before", {before, transcoder}}, {"after", {transcoder, after}}};
  };
  ScoreOutputs outputs;
  outputs.token_loss = outputs.kl = true;
  const auto got = RunPass(*model, kSequences, variants(Operation::kClient), outputs, [](AskedRows& asked) {
    for (float& value : asked.rows) value *= 0.5F;
  });
  const auto expected = RunPass(*model, kSequences, variants(Operation::kScale), outputs, [](AskedRows&) {});
  for (size_t v = 0; v < got.size(); ++v) {
    SCOPED_TRACE(v);
    for (size_t s = 0; s < kSequences.size(); ++s) ExpectSame(got[v].sequences[s], expected[v].sequences[s]);
    if (v > 0) {
      EXPECT_GT(got[v].sequences[0].kl_sum, 1e-3);
    }
  }
}

// --- Through an engine.

ScoreRequest Request(int sequences, int length) {
  ScoreRequest request;
  request.source = Tokens(sequences, length);
  InterventionRequest client;
  client.hook_point = "blocks.1.hook_mlp_out";
  client.operation = ClientRows{};
  request.variants = {{"client", {client}}};
  request.kl = request.per_token_loss = request.client_answers = true;
  return request;
}

// Answers all rows that were asked for with the rows times `factor`.
RowsAnswer AnswerTo(const RowsAsked& asked, float factor = 0.5F) {
  RowsAnswer answer;
  answer.sequence = asked.sequence;
  answer.variant = "client";
  answer.hook_point = "blocks.1.hook_mlp_out";
  answer.rows = static_cast<int64_t>(asked.token_ids.size());
  answer.values = asked.rows;
  for (float& value : answer.values) value *= factor;
  return answer;
}

class Answering : public Reader {
 public:
  // Reads to the end and answers on the way.
  ScoreEnded AnswerAll() {
    while (std::optional<ScoreEvent> event = Next()) {
      if (auto* ended = std::get_if<ScoreEnded>(&*event)) return std::move(*ended);
      if (auto* scored = std::get_if<ScoredSequence>(&*event)) scores.push_back(std::move(*scored));
      if (auto* asked = std::get_if<RowsAsked>(&*event)) {
        EXPECT_TRUE(scoring().Answer(AnswerTo(*asked)).ok());
      }
    }
    ADD_FAILURE() << "no end";
    return {};
  }

  // Returns the rows that are asked for next.
  RowsAsked NextAsked() {
    while (std::optional<ScoreEvent> event = Next()) {
      if (auto* asked = std::get_if<RowsAsked>(&*event)) return std::move(*asked);
      if (std::holds_alternative<ScoreEnded>(*event)) break;
    }
    ADD_FAILURE() << "nothing was asked for";
    return {};
  }
};

TEST(SubstituteTest, ScoresAreThoseOfTheSameRowsInScore) {
  const auto engine = MakeEngine();
  Answering substitute;
  ASSERT_TRUE(substitute.Start(*engine, Request(20, 16)).ok());
  const ScoreEnded ended = substitute.AnswerAll();
  EXPECT_TRUE(ended.status.ok()) << ended.status;
  ScoreRequest same = Request(20, 16);
  same.client_answers = false;
  same.variants[0].interventions[0].operation = ScaleRows{0.5};
  Reader score;
  ASSERT_TRUE(score.Start(*engine, std::move(same)).ok());
  const ScoreEnded expected = score.ReadAll();
  ASSERT_EQ(substitute.scores.size(), 40u);
  ASSERT_EQ(score.scores.size(), 40u);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(substitute.scores[i].sequence, score.scores[i].sequence);
    EXPECT_EQ(substitute.scores[i].variant, score.scores[i].variant);
    EXPECT_NEAR(substitute.scores[i].score.loss_sum, score.scores[i].score.loss_sum, 1e-4);
  }
  EXPECT_EQ(ended.variants[1].replaced[0].rows, 320);
  EXPECT_NEAR(ended.variants[1].replaced[0].ExplainedVariance(), expected.variants[1].replaced[0].ExplainedVariance(),
              1e-6);
  EXPECT_GT(ended.client_time, absl::ZeroDuration());
}

TEST(SubstituteTest, AnAnswerMayComeInPartsAndLeaveRowsAsTheyAre) {
  const auto engine = MakeEngine();
  Answering reader;
  ASSERT_TRUE(reader.Start(*engine, Request(1, 16)).ok());
  const RowsAsked asked = reader.NextAsked();
  ASSERT_EQ(asked.width, 32);
  ASSERT_THAT(asked.rows, SizeIs(16 * 32));
  EXPECT_TRUE(asked.last);
  RowsAnswer first = AnswerTo(asked, 0), second = first;
  first.rows = 10;
  first.mask = {false, false, true, false, false, false, false, false, false, false};
  first.values.assign(32, 0);
  second.first_position = 10;
  second.rows = 6;
  second.mask.assign(6, false);
  second.values.clear();
  EXPECT_TRUE(reader.scoring().Answer(first).ok());
  EXPECT_TRUE(reader.scoring().Answer(second).ok());
  const ScoreEnded ended = reader.AnswerAll();
  EXPECT_EQ(ended.variants[1].replaced[0].rows, 1);
  ScoreRequest zero = Request(1, 16);
  zero.client_answers = false;
  zero.variants[0].interventions[0].operation = ZeroRows{};
  zero.variants[0].interventions[0].positions = {2};
  Reader score;
  ASSERT_TRUE(score.Start(*engine, std::move(zero)).ok());
  score.ReadAll();
  ASSERT_THAT(reader.scores, SizeIs(2));
  EXPECT_NEAR(reader.scores[1].score.loss_sum, score.scores[1].score.loss_sum, 1e-4);
}

TEST(SubstituteTest, AnAnswerThatDoesNotFitEndsTheCallAndNamesItsField) {
  struct Case {
    const char* field;
    const char* message;
    std::function<void(RowsAnswer&)> change;
  };
  const Case cases[] = {
      {"answer.sequence", "7 is not what is next: the rows of sequence 0", [](RowsAnswer& a) { a.sequence = 7; }},
      {"answer.variant", "\"other\" is not", [](RowsAnswer& a) { a.variant = "other"; }},
      {"answer.hook_point", "\"hook_embed\" is not", [](RowsAnswer& a) { a.hook_point = "hook_embed"; }},
      {"answer.first_position", "from position 0 on", [](RowsAnswer& a) { a.first_position = 1; }},
      {"answer.rows", "17 is not from 1 to 16", [](RowsAnswer& a) { a.rows = 17; }},
      {"answer.rows", "0 is not", [](RowsAnswer& a) { a.rows = 0; }},
      {"answer.mask", "3 entries for 16 rows", [](RowsAnswer& a) { a.mask.assign(3, true); }},
      {"answer.data", "has 512 values, but 0 rows", [](RowsAnswer& a) { a.mask.assign(16, false); }},
      {"answer.data", "has 511 values, but 16 rows of 32", [](RowsAnswer& a) { a.values.pop_back(); }},
      {"answer.data", "nan in replaced row 2, value 1, is not finite",
       [](RowsAnswer& a) { a.values[65] = std::nanf(""); }},
      {"answer.data", "is not finite", [](RowsAnswer& a) { a.values[0] = std::numeric_limits<float>::infinity(); }}};
  const auto engine = MakeEngine();
  for (const Case& one : cases) {
    SCOPED_TRACE(one.message);
    Answering reader;
    ASSERT_TRUE(reader.Start(*engine, Request(1, 16)).ok());
    RowsAnswer answer = AnswerTo(reader.NextAsked());
    one.change(answer);
    const absl::Status status = reader.scoring().Answer(answer);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(FieldOf(status), one.field);
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.message));
    EXPECT_EQ(reader.ReadAll().status, status);
  }
}

TEST(SubstituteTest, AStreamThatEndsWhileAnswersAreDueSaysWhatIsMissing) {
  const auto engine = MakeEngine();
  Answering reader;
  ASSERT_TRUE(reader.Start(*engine, Request(3, 16)).ok());
  reader.NextAsked();
  reader.scoring().FinishAnswers();
  const absl::Status status = reader.ReadAll().status;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the rows of sequence 0 under variant \"client\""));
}

TEST(SubstituteTest, ASilentClientLosesItsPassAndNobodyElseWaitsForIt) {
  EngineOptions options;
  options.answer_timeout = absl::Seconds(2);
  const auto engine = MakeEngine(64, options);
  Answering silent;
  const absl::Time asked_at = absl::Now();
  ASSERT_TRUE(silent.Start(*engine, Request(1, 16)).ok());
  silent.NextAsked();
  // Meanwhile the device serves all others.
  Reader score;
  ScoreRequest plain = Request(20, 16);
  plain.client_answers = false;
  plain.variants[0].interventions[0].operation = ZeroRows{};
  ASSERT_TRUE(score.Start(*engine, std::move(plain)).ok());
  EXPECT_TRUE(score.ReadAll().status.ok());
  Answering other;
  ASSERT_TRUE(other.Start(*engine, Request(10, 16)).ok());
  EXPECT_TRUE(other.AnswerAll().status.ok());
  EXPECT_FALSE(DeterministicRows(*engine).empty());
  const absl::Status status = silent.ReadAll().status;
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--answer-timeout"));
  EXPECT_GE(absl::Now() - asked_at, options.answer_timeout);
  // An answer that comes later changes nothing.
  EXPECT_TRUE(silent.scoring().Answer({}).ok());
}

TEST(SubstituteTest, RoomIsGivenBackHoweverAPassEnds) {
  EngineOptions options;
  options.max_paused_tokens = 4 * 32;  // four passes of a sequence of 16 and its variant
  options.default_quotas.captures = 12;
  options.answer_timeout = absl::Minutes(5);
  const auto engine = MakeEngine(64, options);
  for (int round = 0; round < 3; ++round) {
    Answering waiting[4];
    for (Answering& one : waiting) {
      ASSERT_TRUE(one.Start(*engine, Request(1, 16)).ok());
      one.NextAsked();
    }
    // There is no room for a fifth pass until one of the four ends: by an answer, an error, or because its client goes.
    Answering fifth;
    ASSERT_TRUE(fifth.Start(*engine, Request(1, 16)).ok());
    ASSERT_TRUE(std::holds_alternative<ScoreStarted>(*fifth.Next()));
    // When this capture has ended, the executor has looked for the next pass again and again.
    (void)DeterministicRows(*engine);
    EXPECT_FALSE(fifth.scoring().Next().has_value());
    if (round == 0) waiting[0].Leave();
    if (round == 1) {
      EXPECT_FALSE(waiting[1].scoring().Answer({}).ok());
    }
    if (round == 2) waiting[2].scoring().FinishAnswers();
    EXPECT_TRUE(fifth.AnswerAll().status.ok());
  }
}

TEST(SubstituteTest, CapturesBesideSubstituteAndScoreGetTheSameBits) {
  const auto engine = MakeEngine();
  const std::string quiet = DeterministicRows(*engine);
  ASSERT_FALSE(quiet.empty());
  Answering substitute;
  Reader score;
  ASSERT_TRUE(substitute.Start(*engine, Request(100, 16)).ok());
  ScoreRequest plain = Request(100, 30);
  plain.client_answers = false;
  plain.variants[0].interventions[0].operation = ZeroRows{};
  ASSERT_TRUE(score.Start(*engine, std::move(plain)).ok());
  std::thread answering([&] { EXPECT_TRUE(substitute.AnswerAll().status.ok()); });
  std::thread reading([&] { EXPECT_TRUE(score.ReadAll().status.ok()); });
  EXPECT_TRUE(DeterministicRows(*engine) == quiet);
  answering.join();
  reading.join();
  EXPECT_THAT(substitute.scores, SizeIs(200));
}

TEST(SubstituteTest, ADrainedEngineEndsAPassThatWaits) {
  const auto engine = MakeEngine();
  Answering reader;
  ASSERT_TRUE(reader.Start(*engine, Request(5, 16)).ok());
  reader.NextAsked();
  engine->Drain(absl::Now());
  EXPECT_EQ(reader.ReadAll().status.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace hookline
