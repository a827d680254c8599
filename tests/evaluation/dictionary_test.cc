#include "server/model/dictionary/dictionary.h"

#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "server/model/evaluation/score_pass.h"
#include "server/model/load.h"
#include "tests/model/parity.h"

namespace hookline {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

const std::string kFixtures = HOOKLINE_FIXTURES;

std::string Folder(const std::string& name) { return kFixtures + "/evaluation/dictionaries/" + name; }

absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& fixture, std::vector<DictionaryOptions> dictionaries) {
  ModelOptions options;
  options.path = kFixtures + "/families/" + fixture;
  options.device = "cpu";
  options.dtype = "float32";
  options.dictionaries = std::move(dictionaries);
  return LoadModel(options);
}

// A dictionary and what SAELens computes with it.
struct Recorded {
  std::string name, fixture, hook_point;
  std::vector<float> latents, reconstruction;  // of the first rows
  std::map<std::string, double> metrics;
};

std::vector<Recorded> ReadRecorded(const std::string& fixture) {
  std::ifstream stream(kFixtures + "/evaluation/dictionaries.json");
  std::vector<Recorded> recorded;
  for (const Json& one : Json::parse(stream)) {
    if (one["fixture"].get<std::string>() != fixture) continue;
    recorded.push_back({one["name"].get<std::string>(), fixture, one["hookPoint"].get<std::string>(),
                        one["latents"].get<std::vector<float>>(), one["reconstruction"].get<std::vector<float>>(),
                        one["metrics"].get<std::map<std::string, double>>()});
  }
  return recorded;
}

// The dictionaries of a fixture, all beside one model.
std::unique_ptr<Model> LoadAll(const std::string& fixture) {
  std::vector<DictionaryOptions> dictionaries;
  for (const Recorded& one : ReadRecorded(fixture)) dictionaries.push_back({one.name, Folder(one.name), ""});
  auto model = Load(fixture, std::move(dictionaries));
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

Reference ReadFixture(const std::string& fixture) {
  return ReadReference(kFixtures + "/families/" + fixture + "/reference.safetensors");
}

double Difference(const at::Tensor& got, const std::vector<float>& expected) {
  const at::Tensor wanted = at::tensor(expected);
  EXPECT_EQ(got.numel(), wanted.numel());
  return (got.reshape({-1}) - wanted).norm().item<double>() / wanted.norm().item<double>();
}

class DictionaryTest : public ::testing::TestWithParam<std::string> {};

TEST_P(DictionaryTest, LatentsAndReconstructionsAreSaeLenss) {
  const auto model = LoadAll(GetParam());
  ASSERT_NE(model, nullptr);
  const Reference reference = ReadFixture(GetParam());
  const std::vector<Recorded> recorded = ReadRecorded(GetParam());
  ASSERT_EQ(recorded.size(), GetParam() == "gpt2" ? 7u : 4u);
  for (size_t i = 0; i < recorded.size(); ++i) {
    const Recorded& one = recorded[i];
    SCOPED_TRACE(one.name);
    const AttachedDictionary& attached = model->dictionaries()[i];
    EXPECT_EQ(attached.info.name, one.name);
    EXPECT_EQ(model->hook_points()[attached.hook_point].name, one.hook_point);
    const at::Tensor rows = reference.activations.at(one.hook_point).at(1).narrow(0, 0, 6);
    const at::Tensor latents = attached.dictionary->Compute(DictionaryPoint::kActivations, rows);
    EXPECT_LE(Difference(latents, one.latents), 1e-5);
    at::Tensor active;
    const at::Tensor made = attached.dictionary->Reconstruct(rows, {}, /*keeps_error=*/false, &active);
    EXPECT_LE(Difference(made, one.reconstruction), 1e-5);
    EXPECT_TRUE(at::equal(active, latents.ne(0).sum(1)));
    EXPECT_TRUE(at::allclose(attached.dictionary->Compute(DictionaryPoint::kError, rows), rows - made));
  }
}

TEST_P(DictionaryTest, TheirHookPointsAreComputedInAPassLikeAnyOther) {
  const auto model = LoadAll(GetParam());
  ASSERT_NE(model, nullptr);
  const Reference reference = ReadFixture(GetParam());
  const std::vector<Recorded> recorded = ReadRecorded(GetParam());
  for (size_t i = 0; i < recorded.size(); ++i) {
    const AttachedDictionary& attached = model->dictionaries()[i];
    SCOPED_TRACE(attached.info.name);
    const int latents = attached.first_point + static_cast<int>(DictionaryPoint::kActivations);
    EXPECT_EQ(model->hook_points()[latents].name,
              "blocks.1.hook_resid_post." + attached.info.name + ".hook_sae_acts_post");
    EXPECT_EQ(model->hook_points()[latents].width, 64);
    const int64_t before = model->blocks_executed();
    const std::vector<at::Tensor> values = RunModel(*model, reference.tokens[1].unsqueeze(0), {latents});
    EXPECT_EQ(model->blocks_executed() - before, 2);
    EXPECT_LE(Difference(values[0].narrow(0, 0, 6), recorded[i].latents), 1e-5);
  }
}

TEST_P(DictionaryTest, LossesWithReconstructionsAreThoseOfSaeLenssEvals) {
  const auto model = LoadAll(GetParam());
  ASSERT_NE(model, nullptr);
  const at::Tensor ids = ReadFixture(GetParam()).tokens[1];
  const std::vector<uint32_t> sequence(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel());
  std::vector<Variant> variants(1);
  variants[0].interventions.resize(1);
  variants[0].interventions[0].hook_point = model->dictionaries()[0].hook_point;
  for (size_t i = 0; i < model->dictionaries().size(); ++i) {
    Variant variant = variants[0];
    variant.interventions[0].operation = Intervention::Operation::kDictionary;
    variant.interventions[0].dictionary = static_cast<int>(i);
    variants.push_back(std::move(variant));
  }
  std::vector<const Variant*> pointers;
  for (const Variant& variant : variants) pointers.push_back(&variant);
  ScoreOutputs outputs;
  outputs.kl = true;
  const std::vector<std::vector<uint32_t>> sequences = {sequence};
  auto scores = RunScorePass(*model, {sequences, pointers, &outputs});
  ASSERT_TRUE(scores.ok()) << scores.status();
  const double predictions = static_cast<double>(sequence.size()) - 1, tokens = predictions + 1;
  const std::vector<Recorded> recorded = ReadRecorded(GetParam());
  for (size_t i = 0; i < model->dictionaries().size(); ++i) {
    SCOPED_TRACE(model->dictionaries()[i].info.name);
    const std::map<std::string, double>& expected = recorded[i].metrics;
    const VariantScores& with = (*scores)[2 + i];
    EXPECT_NEAR((*scores)[0].sequences[0].loss_sum / predictions, expected.at("ce_loss_without_sae"), 1e-4);
    EXPECT_NEAR((*scores)[1].sequences[0].loss_sum / predictions, expected.at("ce_loss_with_ablation"), 1e-4);
    EXPECT_NEAR(with.sequences[0].loss_sum / predictions, expected.at("ce_loss_with_sae"), 1e-4);
    EXPECT_NEAR(with.sequences[0].kl_sum / tokens, expected.at("kl_div_with_sae"), 1e-4);
    const ReplacedRows& replaced = with.replaced[0];
    EXPECT_NEAR(replaced.active_latents / tokens, expected.at("l0"), 1e-4);
    EXPECT_NEAR(replaced.ExplainedVariance(), expected.at("explained_variance"), 1e-4);
    EXPECT_NEAR(replaced.cosine_similarity / tokens, expected.at("cossim"), 1e-4);
    EXPECT_NEAR(replaced.squared_error / tokens, expected.at("mse"), 1e-4 * (1 + expected.at("mse")));
  }
}

INSTANTIATE_TEST_SUITE_P(, DictionaryTest, ::testing::Values("gpt2", "llama_gqa"),
                         [](const ::testing::TestParamInfo<std::string>& info) { return info.param; });

// sparsify's and dictionary_learning's, whose hook points come from their directory or their submodule.
TEST(OtherDictionariesTest, LatentsAndReconstructionsAreTheirLibraries) {
  std::ifstream stream(kFixtures + "/evaluation/others.json");
  const Json recorded = Json::parse(stream);
  std::vector<DictionaryOptions> dictionaries;
  for (const Json& one : recorded) {
    dictionaries.push_back({absl::StrCat("d", dictionaries.size()), Folder(one["name"].get<std::string>()), ""});
  }
  ASSERT_EQ(dictionaries.size(), 8u);
  const auto model = Load("gpt2", dictionaries);
  ASSERT_TRUE(model.ok()) << model.status();
  const at::Tensor rows = ReadFixture("gpt2").activations.at("blocks.1.hook_resid_post").at(1).narrow(0, 0, 6);
  for (size_t i = 0; i < dictionaries.size(); ++i) {
    SCOPED_TRACE(dictionaries[i].path);
    const AttachedDictionary& attached = (*model)->dictionaries()[i];
    EXPECT_EQ((*model)->hook_points()[attached.hook_point].name, "blocks.1.hook_resid_post");
    EXPECT_LE(Difference(attached.dictionary->Compute(DictionaryPoint::kActivations, rows),
                         recorded[i]["latents"].get<std::vector<float>>()),
              1e-5);
    at::Tensor active;
    EXPECT_LE(Difference(attached.dictionary->Reconstruct(rows, {}, /*keeps_error=*/false, &active),
                         recorded[i]["reconstruction"].get<std::vector<float>>()),
              1e-5);
  }
}

TEST(DictionaryEditTest, EditsChangeLatentsAloneAndTheErrorIsKeptOnRequest) {
  const auto model = LoadAll("gpt2");
  ASSERT_NE(model, nullptr);
  const at::Tensor rows = ReadFixture("gpt2").activations.at("blocks.1.hook_resid_post").at(1);
  const Dictionary& dictionary = *model->dictionaries()[0].dictionary;
  const at::Tensor latents = dictionary.Compute(DictionaryPoint::kActivations, rows);
  const int64_t busy = latents.sum(0).argmax().item<int64_t>();
  at::Tensor active;
  const auto reconstruct = [&](std::vector<LatentEdit> edits, bool keeps_error) {
    return dictionary.Reconstruct(rows, edits, keeps_error, &active);
  };
  const at::Tensor plain = reconstruct({}, false), unit = reconstruct({{busy, LatentEdit::Kind::kScale, 2}}, false);
  // Doubling a latent adds its own direction once more.
  const at::Tensor added = unit - plain;
  const at::Tensor direction = added[latents.select(1, busy).argmax().item<int64_t>()];
  EXPECT_GT(direction.norm().item<double>(), 0);
  const at::Tensor ablated = reconstruct({{busy, LatentEdit::Kind::kClamp, 0}}, false);
  EXPECT_TRUE(at::allclose(plain - ablated, added, 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(reconstruct({{busy, LatentEdit::Kind::kScale, 1}}, true), rows, 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(reconstruct({{busy, LatentEdit::Kind::kScale, 2}}, true), rows + added, 1e-4, 1e-4));
}

TEST(DictionaryNamesTest, OneThatStandsAloneHasTheShortNamesToo) {
  const auto alone = Load("gpt2", {{"one", Folder("gpt2_topk"), ""}});
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ((*alone)->hook_points().Find("blocks.1.hook_resid_post.hook_sae_acts_post"),
            (*alone)->hook_points().Find("blocks.1.hook_resid_post.one.hook_sae_acts_post"));
  const auto two = Load("gpt2", {{"one", Folder("gpt2_topk"), ""}, {"two", Folder("gpt2_gated"), ""}});
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ((*two)->hook_points().Find("blocks.1.hook_resid_post.hook_sae_acts_post"), -1);
  EXPECT_GE((*two)->hook_points().Find("blocks.1.hook_resid_post.two.hook_sae_acts_post"), 0);
}

TEST(DictionaryNamesTest, AnotherHookPointCanBeStated) {
  const auto model = Load("gpt2", {{"one", Folder("gpt2_topk"), "blocks.0.hook_mlp_out"}});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_GE((*model)->hook_points().Find("blocks.0.hook_mlp_out.one.hook_sae_recons"), 0);
}

TEST(DictionaryRefusedTest, WhatDoesNotFitIsRefusedByName) {
  const auto refused = [](DictionaryOptions options) {
    const auto model = Load("gpt2", {std::move(options)});
    EXPECT_FALSE(model.ok());
    return std::string(model.status().message());
  };
  EXPECT_THAT(refused({"one", Folder("gpt2_topk"), "blocks.0.mlp.hook_post"}), HasSubstr("rows of 48 values"));
  EXPECT_THAT(refused({"one", Folder("gpt2_topk"), "blocks.9.hook_mlp_out"}), HasSubstr("blocks.0.hook_mlp_out"));
  EXPECT_THAT(refused({"one", kFixtures, ""}), HasSubstr("not a dictionary"));
}

// A copy of a dictionary whose cfg.json has other fields.
class ChangedDictionary {
 public:
  explicit ChangedDictionary(const std::string& name) {
    char folder[] = "/tmp/hookline-dictionary-XXXXXX";
    folder_ = mkdtemp(folder);
    std::ifstream config(Folder(name) + "/cfg.json");
    json_ = Json::parse(config);
    std::ifstream from(Folder(name) + "/sae_weights.safetensors", std::ios::binary);
    std::ofstream(folder_ + "/sae_weights.safetensors", std::ios::binary) << from.rdbuf();
  }
  ~ChangedDictionary() {
    for (const char* file : {"/sae_weights.safetensors", "/cfg.json"}) std::remove((folder_ + file).c_str());
    std::remove(folder_.c_str());
  }

  Json& json() { return json_; }
  absl::Status Load() const {
    std::ofstream(folder_ + "/cfg.json") << json_;
    return hookline::Load("gpt2", {{"one", folder_, ""}}).status();
  }

 private:
  std::string folder_;
  Json json_;
};

TEST(DictionaryRefusedTest, AConfigurationThatIsNotComputedIsRefusedByField) {
  const std::vector<std::pair<std::string, Json>> changes = {{"architecture", "matching_pursuit"},
                                                             {"normalize_activations", "covariance_whitening"},
                                                             {"rescale_acts_by_decoder_norm", true},
                                                             {"finetuning_scaling_factor", true},
                                                             {"activation_fn", "tanh-relu"}};
  for (const auto& [field, value] : changes) {
    SCOPED_TRACE(field);
    ChangedDictionary changed("gpt2_standard");
    changed.json()[field] = value;
    EXPECT_THAT(std::string(changed.Load().message()), HasSubstr(field));
  }
  ChangedDictionary narrow("gpt2_standard");
  narrow.json()["d_sae"] = 63;
  EXPECT_THAT(std::string(narrow.Load().message()), HasSubstr("W_enc"));
}

TEST(DictionaryConfigTest, ConfigurationsFromBeforeVersion6AreRead) {
  ChangedDictionary old("gpt2_topk");
  Json& json = old.json();
  json["hook_name"] = json["metadata"]["hook_name"];
  json.erase("metadata");
  json.erase("k");
  json["architecture"] = "standard";
  json["activation_fn_str"] = "topk";
  json["activation_fn_kwargs"] = {{"k", 5}};
  EXPECT_TRUE(old.Load().ok()) << old.Load();
}

}  // namespace
}  // namespace hookline
