#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "server/model/load.h"
#include "tests/model/load_fixture.h"
#include "tests/model/parity.h"

namespace hookline {
namespace {

std::string Fixture(const std::string& name) { return std::string(HOOKLINE_FIXTURES) + "/nanochat/" + name; }

std::unique_ptr<Model> Load(const std::string& name, const std::string& dtype = "float32") {
  return LoadFixture("nanochat/" + name, "cpu", dtype);
}

std::vector<std::string> Fixtures(const std::string& with_file) {
  std::vector<std::string> names;
  DIR* directory = opendir(Fixture("").c_str());
  while (const dirent* entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name[0] != '.' && access((Fixture(name) + "/" + with_file).c_str(), F_OK) == 0) names.push_back(name);
  }
  closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class NanochatParityTest : public ::testing::TestWithParam<std::string> {};

TEST_P(NanochatParityTest, EveryHookPointEqualsTheReferenceInFloat32) {
  const auto model = Load(GetParam());
  ASSERT_NE(model, nullptr);
  const Reference reference = ReadReference(Fixture(GetParam()) + "/reference.safetensors");
  ASSERT_FALSE(reference.activations.empty());
  for (const Difference& difference : CompareWithReference(*model, reference)) {
    EXPECT_LE(difference.relative, 1e-5) << difference.what;
    EXPECT_LE(difference.worst_row, 1e-4) << difference.what;
  }
  // The model must not offer a hook point that the reference does not have.
  for (const HookPoint& hook_point : model->hook_points().all()) {
    if (absl::EndsWith(hook_point.name, ".hook_scale")) continue;  // families_parity_test.cc tests them
    EXPECT_EQ(reference.activations.count(hook_point.name), 1u) << hook_point.name;
  }
}

TEST_P(NanochatParityTest, PaddingOnTheRightNeverReachesARow) {
  const auto model = Load(GetParam());
  ASSERT_NE(model, nullptr);
  const Reference reference = ReadReference(Fixture(GetParam()) + "/reference.safetensors");
  const int64_t longest = reference.tokens[2].size(0), length = reference.tokens[1].size(0);
  // Sequence 1 runs beside sequence 2, padded with each of two different ids.
  std::vector<int> all(static_cast<size_t>(model->hook_points().size()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
  const std::vector<at::Tensor> alone = RunModel(*model, reference.tokens[1].unsqueeze(0), all);
  for (int64_t id : {0, 5}) {
    at::Tensor batch = at::full({2, longest}, id, at::kLong);
    batch[0].copy_(reference.tokens[2]);
    batch[1].narrow(0, 0, length).copy_(reference.tokens[1]);
    const std::vector<at::Tensor> together = RunModel(*model, batch, all);
    for (size_t i = 0; i < all.size(); ++i) {
      const at::Tensor rows = together[i].narrow(0, longest, length);
      EXPECT_LE((rows - alone[i]).norm().item<double>(), 1e-5 * alone[i].norm().item<double>())
          << model->hook_points()[all[i]].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, NanochatParityTest, ::testing::ValuesIn(Fixtures("reference.safetensors")), TestName);

class NanochatBfloat16Test : public ::testing::TestWithParam<std::string> {};

TEST_P(NanochatBfloat16Test, EveryRowIsNearTheBfloat16Reference) {
  const auto model = Load(GetParam(), "bfloat16");
  ASSERT_NE(model, nullptr);
  const Reference reference = ReadReference(Fixture(GetParam()) + "/reference_bf16.safetensors");
  ASSERT_FALSE(reference.activations.empty());
  for (const Difference& difference : CompareWithReference(*model, reference)) {
    EXPECT_LE(difference.worst_row, 3e-2) << difference.what;
  }
}

INSTANTIATE_TEST_SUITE_P(, NanochatBfloat16Test, ::testing::ValuesIn(Fixtures("reference_bf16.safetensors")), TestName);

TEST(NanochatTest, TheOriginalCollectorsNamesAreAliases) {
  const auto model = Load("I-gqa");
  ASSERT_NE(model, nullptr);
  const HookPoints& points = model->hook_points();
  EXPECT_EQ(points.Find("blocks.1.hook_attn"), points.Find("blocks.1.hook_attn_out"));
  EXPECT_EQ(points.Find("blocks.1.hook_mlp"), points.Find("blocks.1.hook_mlp_out"));
}

TEST(NanochatTest, SaysWhichEraItFound) {
  const std::vector<std::pair<std::string, std::string>> eras = {
      {"A-gqa", "A"}, {"Ap-mha", "A'"},    {"B-gqa", "B"}, {"C-gqa", "C"}, {"E-gqa", "E or G"},
      {"F-mha", "F"}, {"G-gqa", "E or G"}, {"H-mha", "H"}, {"I-mha", "I"}};
  std::set<std::string> fingerprints;
  for (const auto& [fixture, era] : eras) {
    const auto model = Load(fixture);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->info().architecture, "nanochat");
    EXPECT_EQ(model->info().variant, era) << fixture;
    EXPECT_EQ(model->info().name, fixture);
    EXPECT_EQ(model->info().fingerprint.size(), 32u);
    fingerprints.insert(model->info().fingerprint);
  }
  EXPECT_EQ(fingerprints.size(), eras.size());
}

TEST(NanochatTest, BlocksAfterTheDeepestHookPointAreNotExecuted) {
  const auto model = Load("A-mha");  // four layers
  ASSERT_NE(model, nullptr);
  const at::Tensor ids = at::zeros({1, 8}, at::kLong);
  const auto executed = [&](const std::string& name) {
    const int64_t before = model->blocks_executed();
    RunModel(*model, ids, {model->hook_points().Find(name)});
    return model->blocks_executed() - before;
  };
  EXPECT_EQ(executed("hook_embed"), 0);
  EXPECT_EQ(executed("blocks.0.hook_resid_pre"), 1);
  EXPECT_EQ(executed("blocks.0.hook_resid_post"), 1);
  EXPECT_EQ(executed("blocks.2.attn.hook_q"), 3);
  EXPECT_EQ(executed("ln_final.hook_normalized"), 4);
}

TEST(NanochatTest, TheWindowPatternCanBeStatedWhereTheFileDoesNotSay) {
  ModelOptions options;
  options.path = Fixture("E-gqa");
  options.device = "cpu";
  const auto assumed = LoadModel(options);
  options.window_pattern = "SL";
  const auto stated = LoadModel(options);
  ASSERT_TRUE(assumed.ok() && stated.ok());
  EXPECT_THAT((*assumed)->info().details, ::testing::HasSubstr("window_pattern L (assumed"));
  EXPECT_THAT((*stated)->info().details, ::testing::HasSubstr("window_pattern SL (stated)"));
  const at::Tensor ids = at::arange(250, at::kLong).unsqueeze(0);
  const std::vector<int> last = {(*stated)->hook_points().size() - 1};
  const at::Tensor a = RunModel(**assumed, ids, last)[0], b = RunModel(**stated, ids, last)[0];
  EXPECT_GT((a - b).norm().item<double>(), 0.01 * a.norm().item<double>());
  EXPECT_NE((*assumed)->info().fingerprint, (*stated)->info().fingerprint);

  options.path = Fixture("A-gqa");
  EXPECT_EQ(LoadModel(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.path = Fixture("E-gqa");
  options.window_pattern = "SX";
  EXPECT_EQ(LoadModel(options).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hookline
