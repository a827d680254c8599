#include "server/model/dictionary/dictionary.h"

#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
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

// A dictionary and the values that SAELens computed with it.
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

// Loads the dictionaries of a fixture, all beside one model.
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

// Reads the records of Gemma Scope's dictionary and of one of a single head.
Json ReadMore() {
  std::ifstream stream(kFixtures + "/evaluation/more_dictionaries.json");
  return Json::parse(stream);
}

// Returns what the dictionary computes of `rows` at one of its points.
at::Tensor At(DictionaryPoint point, const Dictionary& dictionary, const at::Tensor& rows) {
  at::Tensor values;
  dictionary.Compute({point}, rows, rows.scalar_type(), [&](DictionaryPoint, const at::Tensor& one) { values = one; });
  return values;
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
    const at::Tensor latents = At(DictionaryPoint::kActivations, *attached.dictionary, rows);
    EXPECT_LE(Difference(latents, one.latents), 1e-5);
    at::Tensor active;
    const at::Tensor made = attached.dictionary->Reconstruct(rows, {}, /*outputs=*/{}, &active);
    EXPECT_LE(Difference(made, one.reconstruction), 1e-5);
    EXPECT_TRUE(at::equal(active, latents.ne(0).sum(1)));
    EXPECT_TRUE(at::allclose(attached.dictionary->Error(rows, rows), rows - made));
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

// Tests dictionaries of sparsify, dictionary_learning and Gemma Scope, whose directory or submodule names the
// hook point.
TEST(OtherDictionariesTest, LatentsAndReconstructionsAreTheirLibraries) {
  std::ifstream stream(kFixtures + "/evaluation/others.json");
  Json recorded = Json::parse(stream);
  recorded.push_back(ReadMore()[0]);
  std::vector<DictionaryOptions> dictionaries;
  for (const Json& one : recorded) {
    dictionaries.push_back({absl::StrCat("d", dictionaries.size()), Folder(one["name"].get<std::string>()), ""});
  }
  ASSERT_EQ(dictionaries.size(), 9u);
  const auto model = Load("gpt2", dictionaries);
  ASSERT_TRUE(model.ok()) << model.status();
  const at::Tensor rows = ReadFixture("gpt2").activations.at("blocks.1.hook_resid_post").at(1).narrow(0, 0, 6);
  for (size_t i = 0; i < dictionaries.size(); ++i) {
    SCOPED_TRACE(dictionaries[i].path);
    const AttachedDictionary& attached = (*model)->dictionaries()[i];
    EXPECT_EQ((*model)->hook_points()[attached.hook_point].name, "blocks.1.hook_resid_post");
    EXPECT_LE(Difference(At(DictionaryPoint::kActivations, *attached.dictionary, rows),
                         recorded[i]["latents"].get<std::vector<float>>()),
              1e-5);
    at::Tensor active;
    EXPECT_LE(Difference(attached.dictionary->Reconstruct(rows, {}, /*outputs=*/{}, &active),
                         recorded[i]["reconstruction"].get<std::vector<float>>()),
              1e-5);
  }
}

TEST(DictionaryEditTest, EditsChangeLatentsAloneAndTheErrorIsKeptOnRequest) {
  const auto model = LoadAll("gpt2");
  ASSERT_NE(model, nullptr);
  const at::Tensor rows = ReadFixture("gpt2").activations.at("blocks.1.hook_resid_post").at(1);
  const Dictionary& dictionary = *model->dictionaries()[0].dictionary;
  const at::Tensor latents = At(DictionaryPoint::kActivations, dictionary, rows);
  const int64_t busy = latents.sum(0).argmax().item<int64_t>();
  at::Tensor active;
  const auto reconstruct = [&](std::vector<LatentEdit> edits, bool keeps_error) {
    return dictionary.Reconstruct(rows, edits, keeps_error ? rows : at::Tensor(), &active);
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

// Tests transcoders against the values that SAELens computed with them.
TEST(TranscoderTest, LatentsReconstructionsAndLossesAreSaeLenss) {
  std::ifstream stream(kFixtures + "/evaluation/transcoders.json");
  const Json recorded = Json::parse(stream);
  ASSERT_EQ(recorded.size(), 5u);
  std::vector<DictionaryOptions> dictionaries;
  for (const Json& one : recorded) {
    dictionaries.push_back({one["name"].get<std::string>(), Folder(one["name"].get<std::string>()), ""});
  }
  const auto loaded = Load("gpt2", dictionaries);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  Model& model = **loaded;
  const Reference reference = ReadFixture("gpt2");
  const at::Tensor ids = reference.tokens[1].unsqueeze(0);
  const std::vector<std::vector<uint32_t>> sequences = {
      {ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel()}};
  std::vector<Variant> variants;
  for (size_t i = 0; i < recorded.size(); ++i) {
    const Json& one = recorded[i];
    SCOPED_TRACE(dictionaries[i].name);
    const AttachedDictionary& attached = model.dictionaries()[i];
    EXPECT_EQ(model.hook_points()[attached.hook_point].name, one["hookPoint"].get<std::string>());
    EXPECT_EQ(model.hook_points()[attached.output_point].name, one["outputPoint"].get<std::string>());
    const int first = attached.first_point;
    const int error = first + static_cast<int>(DictionaryPoint::kError);
    std::map<int, at::Tensor> values;
    const auto tap = [&](int point, const at::Tensor& value) { values[point] = value.narrow(0, 0, 6).clone(); };
    ASSERT_TRUE(model.Forward(ids, {}, {attached.output_point, first + 2, first + 3, error}, tap).ok());
    EXPECT_LE(Difference(values[first + 2], one["latents"].get<std::vector<float>>()), 1e-5);
    EXPECT_LE(Difference(values[first + 3], one["decoded"].get<std::vector<float>>()), 1e-5);
    const at::Tensor made = values[attached.output_point] - values[error];
    EXPECT_LE(Difference(made, one["reconstruction"].get<std::vector<float>>()), 1e-5);
    Variant& variant = variants.emplace_back();
    variant.interventions.resize(1);
    variant.interventions[0].hook_point = attached.output_point;
    variant.interventions[0].operation = Intervention::Operation::kDictionary;
    variant.interventions[0].dictionary = static_cast<int>(i);
  }
  // The last variant keeps the error, and so changes nothing.
  variants.push_back(variants[0]);
  variants.back().interventions[0].operation = Intervention::Operation::kLatents;
  variants.back().interventions[0].keeps_error = true;
  std::vector<const Variant*> pointers;
  for (const Variant& variant : variants) pointers.push_back(&variant);
  ScoreOutputs outputs;
  outputs.kl = true;
  const auto scores = RunScorePass(model, {sequences, pointers, &outputs});
  ASSERT_TRUE(scores.ok()) << scores.status();
  const double tokens = static_cast<double>(ids.numel());
  for (size_t i = 0; i < recorded.size(); ++i) {
    SCOPED_TRACE(dictionaries[i].name);
    const Json& metrics = recorded[i]["metrics"];
    const SequenceScore& score = (*scores)[1 + i].sequences[0];
    EXPECT_NEAR(score.loss_sum / (tokens - 1), metrics["ce_loss_with_transcoder"].get<double>(), 1e-4);
    EXPECT_NEAR(score.kl_sum / tokens, metrics["kl_div_with_transcoder"].get<double>(), 1e-4);
    EXPECT_NEAR((*scores)[1 + i].replaced[0].active_latents / tokens, metrics["l0"].get<double>(), 1e-4);
  }
  EXPECT_NEAR(scores->back().sequences[0].loss_sum, (*scores)[0].sequences[0].loss_sum, 1e-3);
}

TEST(OneHeadTest, ADictionaryOfOneHeadReadsAndReplacesThatHeadsPartOfTheRows) {
  const Json recorded = ReadMore()[1];
  const auto loaded = Load("gpt2", {{"one", Folder(recorded["name"].get<std::string>()), ""}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  Model& model = **loaded;
  const std::string hook_point = "blocks.1.attn.hook_z";
  const int latents = model.hook_points().Find(hook_point + ".hook_sae_acts_post");
  EXPECT_THAT(model.hook_points()[latents].description, HasSubstr("head 1 of blocks.1.attn.hook_z"));
  const Reference reference = ReadFixture("gpt2");
  const at::Tensor ids = reference.tokens[1].unsqueeze(0);
  EXPECT_LE(
      Difference(RunModel(model, ids, {latents})[0].narrow(0, 0, 6), recorded["latents"].get<std::vector<float>>()),
      1e-5);
  // The rows of the other heads stay as they are, and the losses equal those of SAELens's evals.
  Variant variant;
  variant.interventions.resize(1);
  variant.interventions[0].hook_point = model.hook_points().Find(hook_point);
  variant.interventions[0].operation = Intervention::Operation::kDictionary;
  variant.interventions[0].dictionary = 0;
  ScoreOutputs outputs;
  outputs.kl = true;
  outputs.hook_points = {variant.interventions[0].hook_point};
  const std::vector<std::vector<uint32_t>> sequences = {
      {ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel()}};
  const std::vector<const Variant*> variants = {&variant};
  const auto scores = RunScorePass(model, {sequences, variants, &outputs});
  ASSERT_TRUE(scores.ok()) << scores.status();
  const at::Tensor before = at::tensor((*scores)[0].sequences[0].rows[0]).view({-1, 4, 12});
  const at::Tensor after = at::tensor((*scores)[1].sequences[0].rows[0]).view({-1, 4, 12});
  for (int64_t head : {0, 2, 3}) {
    EXPECT_TRUE(at::allclose(before.select(1, head), after.select(1, head), /*rtol=*/1e-4, /*atol=*/1e-5));
  }
  EXPECT_LE(Difference(after.select(1, 1).narrow(0, 0, 6), recorded["reconstruction"].get<std::vector<float>>()), 1e-5);
  const double tokens = static_cast<double>(ids.numel());
  EXPECT_NEAR((*scores)[1].sequences[0].loss_sum / (tokens - 1), recorded["metrics"]["ce_loss_with_sae"].get<double>(),
              1e-4);
  EXPECT_NEAR((*scores)[1].sequences[0].kl_sum / tokens, recorded["metrics"]["kl_div_with_sae"].get<double>(), 1e-4);
  EXPECT_EQ((*scores)[1].replaced[0].sum.size(), 12u);
}

TEST(OneHeadTest, AHeadThatTheHookPointDoesNotHaveIsRefused) {
  const auto refused = [](const std::string& hook_point) {
    return std::string(Load("gpt2", {{"one", Folder("gpt2_one_head"), hook_point}}).status().message());
  };
  EXPECT_THAT(refused("blocks.1.hook_resid_post"), HasSubstr("has 0 heads"));
  EXPECT_EQ(refused("blocks.0.attn.hook_q"), "");
}

// A folder named as in Gemma Scope's repositories, with a file of `bytes`; empty: the bytes of the fixture.
class GemmaScopeFolder {
 public:
  explicit GemmaScopeFolder(const std::string& name, std::string bytes = "") {
    char folder[] = "/tmp/hookline-dictionary-XXXXXX";
    root_ = mkdtemp(folder);
    path_ = root_ + "/" + name;
    std::filesystem::create_directories(path_);
    if (bytes.empty()) bytes = Fixture();
    std::ofstream(path_ + "/params.npz", std::ios::binary) << bytes;
  }
  ~GemmaScopeFolder() { std::filesystem::remove_all(root_); }

  static std::string Fixture() {
    std::ifstream file(Folder("gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_5/params.npz"), std::ios::binary);
    std::ostringstream bytes;
    bytes << file.rdbuf();
    return bytes.str();
  }

  // Returns the hook point of the dictionary, or the error.
  std::string Load(const std::string& hook_point = "") const {
    const auto model = hookline::Load("gpt2", {{"one", path_, hook_point}});
    if (!model.ok()) return std::string(model.status().message());
    return (*model)->hook_points()[(*model)->dictionaries()[0].hook_point].name;
  }

 private:
  std::string root_, path_;
};

TEST(GemmaScopeTest, ThePathTellsTheHookPoint) {
  EXPECT_EQ(GemmaScopeFolder("gemma-scope-9b-pt-res/layer_0/width_16k").Load(), "blocks.0.hook_resid_post");
  EXPECT_EQ(GemmaScopeFolder("models--google--gemma-scope-2b-pt-mlp/snapshots/8f/layer_1/width_65k").Load(),
            "blocks.1.hook_mlp_out");
  EXPECT_EQ(GemmaScopeFolder("gemma-scope-2b-pt-att/layer_1/width_16k").Load(), "blocks.1.attn.hook_z");
  EXPECT_THAT(GemmaScopeFolder("mine").Load(), HasSubstr("NAME=PATH@HOOK"));
  EXPECT_EQ(GemmaScopeFolder("mine").Load("blocks.0.hook_attn_out"), "blocks.0.hook_attn_out");
}

TEST(GemmaScopeTest, WhatIsNotComputedOrDamagedIsRefusedByName) {
  EXPECT_THAT(GemmaScopeFolder("gemma-scope-2b-pt-transcoders/layer_1/width_16k").Load(),
              HasSubstr("transcoders are not supported"));
  EXPECT_THAT(GemmaScopeFolder("gemma-scope-2b-pt-res/embedding/width_4k").Load(), HasSubstr("embedding"));
  std::string bytes = GemmaScopeFolder::Fixture();
  EXPECT_THAT(GemmaScopeFolder("mine", bytes.substr(0, bytes.size() / 2)).Load("hook_embed"), HasSubstr("params.npz"));
  std::string other = bytes;
  for (size_t at = other.find("b_enc"); at != std::string::npos; at = other.find("b_enc", at))
    other.replace(at, 5, "b_ecn");
  EXPECT_THAT(GemmaScopeFolder("mine", other).Load("hook_embed"), HasSubstr("b_enc"));
  std::string type = bytes;
  type.replace(type.find("<f4"), 3, "<i4");
  EXPECT_THAT(GemmaScopeFolder("mine", type).Load("hook_embed"), HasSubstr("<f4"));
  bytes[bytes.find("W_dec.npy") + 1000] ^= 1;
  EXPECT_THAT(GemmaScopeFolder("mine", bytes).Load("hook_embed"), HasSubstr("checksum"));
}

// A copy of a dictionary, in whose cfg.json fields can be changed.
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
