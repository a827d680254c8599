// Tests models on several devices: how --device is read, how blocks are split, and that all compute the same.
#include <ATen/ATen.h>

#include "gmock/gmock.h"
#include "server/model/load.h"
#include "server/model/load/device_spec.h"
#include "server/model/load/stages.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelOptions Fixture(const std::string& path, const std::string& device) {
  ModelOptions options;
  options.path = std::string(HOOKLINE_FIXTURES) + "/" + path;
  options.device = device;
  options.dtype = "float32";
  return options;
}

// Returns every hook point's values.
std::vector<at::Tensor> AllValues(Model& model) {
  std::vector<int> hook_points;
  for (int i = 0; i < model.hook_points().size(); ++i) hook_points.push_back(i);
  std::vector<at::Tensor> values;
  const at::Tensor ids = at::arange(24, at::kLong).view({2, 12});
  const absl::Status status = model.Forward(ids, /*lengths=*/{}, hook_points,
                                            [&](int, const at::Tensor& value) { values.push_back(value.clone()); });
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

void ExpectEqual(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "hook point " << i;
}

TEST(DevicesTest, ReplicasAreSeparatedByCommasAndStagesByPlus) {
  EXPECT_THAT(*ParseDevices("cuda:0"), ElementsAre(ElementsAre("cuda:0")));
  EXPECT_THAT(*ParseDevices("cuda:0+cuda:1,cuda:2+cuda:3"),
              ElementsAre(ElementsAre("cuda:0", "cuda:1"), ElementsAre("cuda:2", "cuda:3")));
  EXPECT_THAT(*ParseDevices("cpu,cpu+cpu"), ElementsAre(ElementsAre("cpu"), ElementsAre("cpu", "cpu")));
}

TEST(DevicesTest, ContradictionsAreRefused) {
  const auto message = [](const std::string& text) {
    const auto parsed = ParseDevices(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    return std::string(parsed.status().message());
  };
  EXPECT_THAT(message(""), HasSubstr("missing"));
  EXPECT_THAT(message("cuda:0,"), HasSubstr("missing"));
  EXPECT_THAT(message("cuda:0++cuda:1"), HasSubstr("missing"));
  EXPECT_THAT(message("cuda:1,cuda:1"), HasSubstr("cuda:1 is named twice"));
  EXPECT_THAT(message("cuda:0+cuda:0"), HasSubstr("twice"));
  EXPECT_THAT(message("cpu,cuda:0"), HasSubstr("CPU"));
  EXPECT_THAT(message("auto,cuda:1"), HasSubstr("cannot be combined"));
}

TEST(StagesTest, BlocksAreSplitByTheBytesOfTheirWeights) {
  // The embedding weighs as much as two blocks.
  std::map<std::string, int64_t> weights = {{"wte.weight", 200}, {"lm_head.weight", 100}, {"ln_f.weight", 1}};
  for (int i = 0; i < 6; ++i) weights["h." + std::to_string(i) + ".attn.weight"] = 100;
  const std::vector<std::string> devices = {"a", "b", "c"};
  const auto stages = SplitBlocks(weights, 6, devices);
  ASSERT_TRUE(stages.ok()) << stages.status();
  EXPECT_EQ((*stages)[0].blocks, 1);
  EXPECT_EQ((*stages)[0].weight_bytes, 300);
  EXPECT_EQ((*stages)[1].first_block, 1);
  EXPECT_EQ((*stages)[1].blocks, 3);
  EXPECT_EQ((*stages)[2].blocks, 2);
  EXPECT_EQ((*stages)[2].weight_bytes, 301);
  EXPECT_EQ(SplitBlocks(weights, 2, devices).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(StagesTest, EveryStageHasABlockWhateverTheyWeigh) {
  std::map<std::string, int64_t> weights = {{"wte.weight", 1000}, {"h.0.w", 1}, {"h.1.w", 1}, {"h.2.w", 900}};
  const auto stages = SplitBlocks(weights, 3, std::vector<std::string>{"a", "b", "c"});
  ASSERT_TRUE(stages.ok()) << stages.status();
  for (const Stage& stage : *stages) EXPECT_EQ(stage.blocks, 1);
}

TEST(ServedModelTest, ReplicasOnTheCpuComputeTheSameWithOneCopyOfTheWeights) {
  const ModelOptions options = Fixture("families/gpt2", "cpu,cpu");
  const auto served = LoadServedModel(options);
  ASSERT_TRUE(served.ok()) << served.status();
  ASSERT_EQ(served->executors.size(), 2u);
  EXPECT_EQ(served->executors[1].replica, 1);
  ExpectEqual(AllValues(*served->executors[0].model), AllValues(*served->executors[1].model));
  const auto one = CountWeights(Fixture("families/gpt2", "cpu")), two = CountWeights(options);
  ASSERT_TRUE(one.ok() && two.ok());
  ASSERT_EQ(two->size(), 1u);
  EXPECT_EQ((*two)[0].bytes, (*one)[0].bytes);
}

TEST(ServedModelTest, StagesComputeWhatTheWholeComputes) {
  for (const std::string path :
       {"families/gpt2", "families/llama_gqa", "families/gemma4", "families/mixtral", "nanochat/F-gqa"}) {
    const auto whole = LoadServedModel(Fixture(path, "cpu"));
    ASSERT_TRUE(whole.ok()) << whole.status();
    const auto split = LoadServedModel(Fixture(path, "cpu+cpu"));
    ASSERT_TRUE(split.ok()) << split.status();
    const ModelInfo& info = split->first().info();
    const std::vector<Stage>& stages = split->executors[0].stages;
    ASSERT_EQ(stages.size(), 2u);
    EXPECT_EQ(stages[0].blocks + stages[1].blocks, info.layers);
    EXPECT_EQ(info.fingerprint, whole->first().info().fingerprint);
    ASSERT_EQ(split->executors.size(), 2u) << "one for each stage";
    EXPECT_EQ(split->executors[1].replica, 0);
    for (const ServedModel::Executor& executor : split->executors) {
      ExpectEqual(AllValues(*executor.model), AllValues(*whole->executors[0].model));
    }
  }
}

TEST(ServedModelTest, MoreStagesThanBlocksAreRefused) {
  std::string device = "cpu";
  for (int i = 0; i < 60; ++i) device += "+cpu";
  const auto served = LoadServedModel(Fixture("families/gpt2", device));
  EXPECT_EQ(served.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(served.status().message()), HasSubstr("blocks"));
}

}  // namespace
}  // namespace hookline
