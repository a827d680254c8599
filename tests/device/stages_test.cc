// Tests a model whose blocks lie on two accelerators: its memory, its rows and its scores.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gmock/gmock.h"
#include "server/model/load.h"
#include "server/model/load/preflight.h"
#include "tests/device/device_fixture.h"
#include "tests/evaluation/running_scores.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Each names its unembedding, or the norm before it, differently; GPT-2, Gemma and OPT use the embedding for it.
const std::vector<std::string> kFixtures = {"families/gpt2",   "families/llama_gqa",         "families/opt",
                                            "families/gemma3", "families/gpt_neox_parallel", "families/phi",
                                            "nanochat/I-gqa"};
const std::vector<std::vector<uint32_t>> kSequences = {{5, 3, 9, 12, 7, 31, 2}, {8, 1, 4}};

std::string BothDevices() { return FakeDevice::Name(0) + "+" + FakeDevice::Name(1); }

ModelOptions Options(const std::string& fixture, const std::string& device) {
  ModelOptions options;
  options.path = std::string(HOOKLINE_FIXTURES) + "/" + fixture;
  options.device = device;
  options.dtype = "float32";
  return options;
}

class StagesTest : public DeviceEngineTest {
 protected:
  // Returns interventions in the first block and in the last, on all positions and on some.
  static std::vector<Variant> Variants(const Model& model) {
    Intervention first, last;
    first.hook_point = model.hook_points().Find("blocks.0.hook_resid_post");
    first.operation = Intervention::Operation::kBatchMean;
    last.hook_point = model.hook_points().Find("blocks." + std::to_string(model.info().layers - 1) + ".hook_resid_pre");
    last.operation = Intervention::Operation::kScale;
    last.factor = 0.5;
    last.positions = {1, 2};
    last.ignored_token_ids = {9};
    return {{"first", {first}}, {"last", {last}}, {"both", {first, last}}};
  }

  static std::vector<VariantScores> Score(Model& model) {
    ScoreOutputs outputs;
    outputs.token_loss = outputs.kl = true;
    outputs.top_logits = 3;
    outputs.hook_points = {model.hook_points().Find("blocks.0.hook_resid_post")};
    const std::vector<Variant> variants = Variants(model);
    std::vector<const Variant*> pointers;
    for (const Variant& variant : variants) pointers.push_back(&variant);
    auto scores = RunScorePass(model, {kSequences, pointers, &outputs});
    EXPECT_TRUE(scores.ok()) << scores.status();
    return scores.ok() ? *std::move(scores) : std::vector<VariantScores>();
  }
};

TEST_F(StagesTest, ScoresAreThoseOfOneDevice) {
  for (const std::string& fixture : kFixtures) {
    SCOPED_TRACE(fixture);
    const auto split = LoadFixture(fixture, BothDevices()), whole = LoadFixture(fixture, "cpu");
    ASSERT_TRUE(split != nullptr && whole != nullptr);
    const std::vector<VariantScores> got = Score(*split), expected = Score(*whole);
    ASSERT_EQ(got.size(), 4u);
    for (size_t v = 0; v < got.size(); ++v) {
      for (size_t s = 0; s < kSequences.size(); ++s) {
        const SequenceScore &a = got[v].sequences[s], &b = expected[v].sequences[s];
        EXPECT_THAT(a.token_loss, ::testing::Pointwise(::testing::FloatNear(1e-4F), b.token_loss));
        EXPECT_NEAR(a.kl_sum, b.kl_sum, 1e-4);
        EXPECT_EQ(a.top_logits.size(), b.top_logits.size());
        EXPECT_THAT(a.rows[0], ::testing::Pointwise(::testing::FloatNear(1e-4F), b.rows[0]));
      }
      for (size_t i = 0; i < got[v].replaced.size(); ++i) {
        const ReplacedRows &a = got[v].replaced[i], &b = expected[v].replaced[i];
        EXPECT_EQ(a.rows, b.rows);
        EXPECT_GT(a.rows, 0);
        EXPECT_NEAR(a.squared_error, b.squared_error, 1e-4 * b.squares);
        EXPECT_NEAR(a.squares, b.squares, 1e-4 * b.squares);
      }
    }
  }
}

TEST_F(StagesTest, WhatIsNotAskedForIsNotComputedOnTheSecondDevice) {
  const auto model = LoadFixture("families/gpt2", BothDevices());
  ASSERT_NE(model, nullptr);
  const int64_t before = model->blocks_executed(), allocated = FakeDevice::AllocatedBytes(1);
  const at::Tensor ids = at::zeros({1, 4}, at::kLong).to(at::Device(FakeDevice::Name(0)));
  const int point = model->hook_points().Find("blocks.0.hook_resid_post");
  ASSERT_TRUE(model->Forward(ids, {}, {point}, [](int, const at::Tensor&) {}).ok());
  EXPECT_EQ(model->blocks_executed() - before, 1);
  EXPECT_EQ(FakeDevice::AllocatedBytes(1), allocated);
}

TEST_F(StagesTest, EachDeviceIsAskedForWhatItsStageTakes) {
  for (const std::string& fixture : kFixtures) {
    SCOPED_TRACE(fixture);
    const auto needs = CountWeights(Options(fixture, BothDevices()));
    ASSERT_TRUE(needs.ok()) << needs.status();
    ASSERT_EQ(needs->size(), 2u);
    const int64_t before[2] = {FakeDevice::AllocatedBytes(0), FakeDevice::AllocatedBytes(1)};
    const auto model = LoadFixture(fixture, BothDevices());
    for (int device = 0; device < 2; ++device) {
      EXPECT_EQ((*needs)[device].device, FakeDevice::Name(device));
      const auto taken = static_cast<double>(FakeDevice::AllocatedBytes(device) - before[device]);
      // Rotary tables and masks are small, and are made when they are needed.
      EXPECT_NEAR(static_cast<double>((*needs)[device].bytes), taken, 0.05 * taken);
    }
  }
}

TEST_F(StagesTest, AModelThatOneOfItsDevicesCannotHoldIsRefused) {
  const ModelOptions options = Options("families/gpt2", BothDevices());
  const int64_t second = CountWeights(options)->back().bytes;
  int64_t room = second;
  const auto available = [&](const std::string& device) -> std::optional<AvailableMemory> {
    return AvailableMemory{device == FakeDevice::Name(1) ? room : int64_t{1} << 40, "a test"};
  };
  EXPECT_TRUE(CheckModels({options}, available).ok());
  --room;
  const absl::Status status = CheckModels({options}, available);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(FakeDevice::Name(1)), HasSubstr(std::to_string(second) + " bytes"),
                    HasSubstr(std::to_string(room) + " bytes")));
}

TEST_F(StagesTest, ATranscoderThatReadsOnOneDeviceAndWritesOnTheOtherIsRefused) {
  ModelOptions options = Options("families/gpt2", BothDevices());
  DictionaryOptions transcoder;
  transcoder.name = "across";
  transcoder.path = std::string(HOOKLINE_FIXTURES) + "/evaluation/dictionaries/gpt2_transcoder_across";
  options.dictionaries = {transcoder};
  const auto model = LoadModel(options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()),
              AllOf(HasSubstr("reads blocks.0.hook_resid_post and writes blocks.1.mlp.hook_post"),
                    HasSubstr("on two devices")));
}

class LostDeviceTest : public DeviceEngineTest {
 protected:
  // Starts a scoring, and makes `device` fail when the first score has arrived.
  ScoreEnded ScoreAndFail(int device) {
    TokenBatch tokens;
    for (int i = 0; i < 200; ++i) {
      for (uint32_t t = 0; t < 32; ++t) tokens.Append((7 * i + t) % 64);
      tokens.EndSequence();
    }
    ScoreRequest request;
    request.source = std::move(tokens);
    EXPECT_TRUE(reader_.Start(*engine_, std::move(request)).ok());
    while (std::optional<ScoreEvent> event = reader_.Next()) {
      auto* const scored = std::get_if<ScoredSequence>(&*event);
      if (scored == nullptr) continue;
      reader_.scores.push_back(std::move(*scored));
      break;
    }
    FakeDevice::FailDevice(device, "CUDA error: device-side assert triggered");
    ScoreEnded ended = reader_.ReadAll();
    reader_.Leave();
    // A model frees its memory when it is destroyed, which is not possible on a failing device.
    engine_.reset();
    FakeDevice::Reset();
    return ended;
  }

  Reader reader_;
};

TEST_F(LostDeviceTest, AScoringWithoutAnotherReplicaEndsAsUnavailable) {
  engine_ = MakeEngine(FakeDevice::Name(0));
  const ScoreEnded ended = ScoreAndFail(0);
  EXPECT_EQ(ended.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(ended.status.message()), HasSubstr("device-side assert"));
}

TEST_F(LostDeviceTest, WhatItHadRunsAgainOnAnotherReplica) {
  for (int lost = 0; lost < 2; ++lost) {
    auto served = LoadServedModel(Options(fixture_, FakeDevice::Name(0) + "," + FakeDevice::Name(1)));
    ASSERT_TRUE(served.ok()) << served.status();
    std::vector<ServedModel> models;
    models.push_back(*std::move(served));
    auto engine = Engine::Create(options_, std::move(models), {});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    reader_.scores.clear();
    const ScoreEnded ended = ScoreAndFail(lost);
    EXPECT_TRUE(ended.status.ok()) << ended.status;
    EXPECT_EQ(ended.sequences, 200);
    ASSERT_EQ(reader_.scores.size(), 200u);
    for (size_t i = 0; i < reader_.scores.size(); ++i) {
      EXPECT_EQ(reader_.scores[i].sequence, static_cast<int64_t>(i));
    }
  }
}

}  // namespace
}  // namespace hookline
