// Tests that checkpoints which trainers wrote are read.
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "server/model/load/checkpoint_folder.h"
#include "server/model/load/torch_checkpoint.h"
#include "tests/checkpoint/values_of.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

struct Facts {
  const char* file;
  size_t tensors;
  int64_t bfloat16_tensors;
  int64_t values;
  double sum;  // of the absolute values
};

// These are the values that Python's torch.load (1.13) returns.
constexpr Facts kFacts[] = {
    {"A-gqa/model_000123.pt", 20, 1, 173568, 33498.87649978945},
    {"A-mha/model_000123.pt", 26, 1, 135264, 25975.295108337814},
    {"Ap-gqa/model_000123.pt", 20, 0, 167936, 30026.671461791717},
    {"Ap-mha/model_000123.pt", 26, 1, 141312, 29963.44467555364},
    {"B-gqa/model_000123.pt", 22, 1, 167942, 30085.326160148277},
    {"B-mha/model_000123.pt", 28, 1, 141320, 29874.579473933794},
    {"C-gqa/model_000123.pt", 22, 1, 167942, 30019.18589842138},
    {"C-mha/model_000123.pt", 28, 1, 141320, 29948.890549539763},
    {"E-gqa/model_000123.pt", 26, 3, 196742, 48145.330809123356},
    {"E-mha/model_000123.pt", 32, 3, 172296, 49590.659294097306},
    {"F-gqa/model_000123.pt", 28, 4, 194249, 76782.24707505472},
    {"F-mha/model_000123.pt", 34, 4, 233980, 84102.4576975776},
    {"G-gqa/model_000123.pt", 26, 3, 122246, 36760.29238715448},
    {"H-gqa/model_000123.pt", 26, 0, 184374, 40583.94115216415},
    {"H-mha/model_000123.pt", 32, 3, 172136, 49446.34028779826},
    {"I-gqa/model_000123.pt", 29, 3, 196688, 48337.80055026764},
    {"I-mha/model_000123.pt", 35, 3, 172162, 49650.98647261997},
    {"demo/model_000891.pt", 35, 0, 950402, 185274.10577508569},
};

TEST(FixturesTest, EveryNanochatCheckpointHasTheTensorsThatTorchLoadsFromIt) {
  for (const Facts& facts : kFacts) {
    const auto weights = ReadTorchCheckpoint(std::string(HOOKLINE_FIXTURES) + "/nanochat/" + facts.file);
    ASSERT_TRUE(weights.ok()) << weights.status();
    int64_t values = 0, bfloat16_tensors = 0;
    double sum = 0;
    for (const auto& [name, tensor] : weights->tensors) {
      EXPECT_EQ(name.rfind("_orig_mod.", 0), std::string::npos) << name;
      values += tensor.numel();
      bfloat16_tensors += tensor.scalar_type() == at::kBFloat16 ? 1 : 0;
      sum += ValuesOf(*weights, name, at::kDouble).abs().sum().item<double>();
    }
    EXPECT_EQ(weights->tensors.size(), facts.tensors) << facts.file;
    EXPECT_EQ(bfloat16_tensors, facts.bfloat16_tensors) << facts.file;
    EXPECT_EQ(values, facts.values) << facts.file;
    EXPECT_NEAR(sum, facts.sum, 1e-9 * facts.sum) << facts.file;
  }
}

TEST(FixturesTest, ShardsAreReadByTheNamesInTheirIndex) {
  const auto weights = ReadCheckpointFolder(std::string(HOOKLINE_FIXTURES) + "/families/llama3_rope");
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->tensors.at("model.embed_tokens.weight").sizes(), at::IntArrayRef({301, 48}));
  EXPECT_EQ(weights->tensors.count("model.layers.2.mlp.down_proj.weight"), 1u);
}

// PyTorch 1.13 wrote the same tensors to both files: `a` contiguous, `b` transposed, `c` a part of the storage of `d`.
TEST(FixturesTest, TheFormBeforePyTorch16IsReadAsTheZipArchiveIs) {
  for (const char* file : {"zip.bin", "legacy.bin"}) {
    const auto weights = ReadTorchCheckpoint(absl::StrCat(HOOKLINE_FIXTURES, "/checkpoints/", file));
    ASSERT_TRUE(weights.ok()) << weights.status();
    ASSERT_EQ(weights->tensors.size(), 5u) << file;
    EXPECT_TRUE(at::equal(ValuesOf(*weights, "a"), at::arange(6, at::kFloat).view({2, 3}))) << file;
    EXPECT_TRUE(at::equal(ValuesOf(*weights, "b"), at::arange(6, at::kBFloat16).view({2, 3}).t())) << file;
    EXPECT_TRUE(at::equal(ValuesOf(*weights, "c"), at::arange(2, 6, at::kHalf))) << file;
    EXPECT_TRUE(at::equal(ValuesOf(*weights, "d"), at::arange(8, at::kHalf))) << file;
    EXPECT_TRUE(at::equal(ValuesOf(*weights, "e"), at::tensor({1, 0, 1}).to(at::kBool))) << file;
  }
}

TEST(FixturesTest, EveryCutOfTheFormBeforePyTorch16IsAnError) {
  const std::string whole = ReadFile(std::string(HOOKLINE_FIXTURES) + "/checkpoints/legacy.bin");
  const ScratchFile file;
  for (size_t length = 0; length < whole.size(); ++length) {
    file.Write(whole.substr(0, length));
    const absl::Status status = ReadTorchCheckpoint(file.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << length;
    EXPECT_THAT(status.message(), ::testing::HasSubstr(file.path())) << length;
  }
}

}  // namespace
}  // namespace hookline
