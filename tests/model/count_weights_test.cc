// The size of a model's weights is known before they are read, exactly to the byte.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "server/model/load.h"

namespace hookline {
namespace {

ModelOptions Fixture(const std::string& name, const std::string& dtype = "float32") {
  ModelOptions options;
  options.path = std::string(HOOKLINE_FIXTURES) + "/" + name;
  options.device = "cpu";
  options.dtype = dtype;
  return options;
}

int64_t Bytes(const ModelOptions& options) {
  const auto need = CountWeights(options);
  EXPECT_TRUE(need.ok()) << need.status();
  return need.ok() ? need->front().bytes : -1;
}

ModelInfo Info(const ModelOptions& options) {
  const auto model = LoadModel(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? (*model)->info() : ModelInfo{};
}

TEST(CountWeightsTest, WeightsCountInTheTypeTheyAreComputedIn) {
  const ModelInfo info = Info(Fixture("families/llama_gqa"));
  const int64_t embedding = info.vocabulary_size * info.width;
  EXPECT_EQ(Bytes(Fixture("families/llama_gqa")), 4 * info.parameters);
  // The embedding stays in the type in which it is stored.
  EXPECT_EQ(Bytes(Fixture("families/llama_gqa", "bfloat16")), 2 * info.parameters + 2 * embedding);
  const ModelInfo stored_narrow = Info(Fixture("families/mistral"));
  EXPECT_EQ(Bytes(Fixture("families/mistral")),
            4 * stored_narrow.parameters - 2 * stored_narrow.vocabulary_size * stored_narrow.width);
}

TEST(CountWeightsTest, TheUnembeddingCountsOnlyWhereItIsLoaded) {
  for (const std::string name :
       {"families/llama_gqa", "families/gemma3_multimodal", "families/phi", "nanochat/A-gqa"}) {
    ModelOptions options = Fixture(name);
    const ModelInfo info = Info(options);
    const int64_t with = Bytes(options);
    options.evaluation = false;
    const int64_t without = Bytes(options);
    // Phi's unembedding has a bias too; a tied unembedding is the embedding, so that leaving it out saves nothing.
    const bool is_tied = name == "families/gemma3_multimodal";
    const int64_t rows = info.width + (name == "families/phi" ? 1 : 0);
    EXPECT_EQ(with - without, is_tied ? 0 : 4 * info.vocabulary_size * rows) << name;
  }
}

TEST(CountWeightsTest, MasksAndTowersThatAreNotReadCountNothing) {
  for (const std::string name : {"families/gpt2_hub_layout", "families/gpt_neo"}) {
    EXPECT_EQ(Bytes(Fixture(name)), 4 * Info(Fixture(name)).parameters) << name;
  }
  // The embedding is stored in bfloat16, like all of the checkpoint.
  const ModelInfo info = Info(Fixture("families/qwen3_5", "bfloat16"));
  EXPECT_LT(Bytes(Fixture("families/qwen3_5", "bfloat16")), 2 * info.parameters * 11 / 10);
}

TEST(CountWeightsTest, WhatCannotBeLoadedIsRefusedAsLoadingDoes) {
  const ModelOptions nowhere = Fixture("families/nowhere");
  EXPECT_EQ(CountWeights(nowhere).status(), LoadModel(nowhere).status());
  const ModelOptions no_model = Fixture("families");
  EXPECT_EQ(CountWeights(no_model).status(), LoadModel(no_model).status());
}

}  // namespace
}  // namespace hookline
