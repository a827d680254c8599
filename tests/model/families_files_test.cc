// Tests checkpoints in the forms in which people publish them: other files, other names, more than the model.
#include <ATen/ATen.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gmock/gmock.h"
#include "tests/formats/archive_writer.h"
#include "tests/model/changed_fixture.h"
#include "tests/model/parity.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kPointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";

class FamiliesFilesTest : public ChangedFixtureTest {
 protected:
  // Loads the changed fixture and compares it with the original.
  void ExpectSameRows(const std::string& fixture) {
    const auto changed = Load();
    ASSERT_TRUE(changed.ok()) << changed.status();
    ModelOptions options;
    options.path = fs::path(HOOKLINE_FIXTURES) / "families" / fixture;
    options.device = "cpu";
    const auto original = LoadModel(options);
    ASSERT_TRUE(original.ok()) << original.status();
    const at::Tensor ids = at::arange(24, at::kLong).view({2, 12});
    const int last = (*original)->hook_points().size() - 1;
    EXPECT_TRUE(at::equal(RunModel(**changed, ids, {last})[0], RunModel(**original, ids, {last})[0]));
    EXPECT_EQ((*changed)->info().parameters, (*original)->info().parameters);
  }

  void Rename(const std::function<std::string(const std::string& name)>& renamed) {
    ChangeHeader([&](Json& header) {
      Json other = Json::object();
      for (const auto& [name, entry] : header.items()) other[name == "__metadata__" ? name : renamed(name)] = entry;
      header = other;
    });
  }

  // Adds a tensor of `bytes` bytes to the checkpoint.
  void Add(const std::string& name, const std::string& dtype, int64_t values, int64_t bytes) {
    ChangeHeader(
        [&](Json& header) {
          int64_t end = 0;
          for (const auto& [key, entry] : header.items()) {
            if (key != "__metadata__") end = std::max(end, entry["data_offsets"][1].get<int64_t>());
          }
          header[name] = {{"dtype", dtype}, {"shape", {values}}, {"data_offsets", {end, end + bytes}}};
        },
        std::string(static_cast<size_t>(bytes), '\0'));
  }

  std::string Message() {
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  }
};

// Returns the fixture's weights as torch.save writes them.
std::string AsBin(const fs::path& safetensors) {
  const std::string bytes = ReadFile(safetensors);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  const Json header = Json::parse(bytes.substr(8, length));
  Pickle pickle;
  pickle.Global("collections", "OrderedDict").Raw(")R(");
  std::vector<std::string> storages;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    Pickle::Tensor tensor;
    tensor.type = entry["dtype"] == "F32" ? "FloatStorage" : "BFloat16Storage";
    tensor.key = std::to_string(storages.size());
    tensor.sizes = entry["shape"].get<std::vector<int64_t>>();
    tensor.storage_values = 1;
    for (size_t i = tensor.sizes.size(); i-- > 0;) {
      tensor.strides.insert(tensor.strides.begin(), tensor.storage_values);
      tensor.storage_values *= tensor.sizes[i];
    }
    const auto offsets = entry["data_offsets"].get<std::vector<size_t>>();
    storages.push_back(bytes.substr(8 + length + offsets[0], offsets[1] - offsets[0]));
    pickle.String(name).Rebuild(tensor);
  }
  return TorchFile(pickle.Raw("u").Stop(), storages);
}

TEST_F(FamiliesFilesTest, ABinCheckpointIsTheSameModelAsItsSafetensors) {
  for (const char* fixture : {"llama_gqa", "gpt2"}) {
    Use(fixture);
    std::ofstream(root_ / "pytorch_model.bin", std::ios::binary) << AsBin(root_ / "model.safetensors");
    const auto original = Load();
    ASSERT_TRUE(original.ok()) << original.status();
    fs::remove(root_ / "model.safetensors");
    ExpectSameRows(fixture);
    EXPECT_EQ((*Load())->info().fingerprint, (*original)->info().fingerprint);
  }
}

TEST_F(FamiliesFilesTest, NamesWithoutTheirPrefixAreTheSameModel) {
  const auto without = [&](const std::string& fixture, const std::string& prefix) {
    Use(fixture);
    Rename([&](const std::string& name) { return std::string(absl::StripPrefix(name, prefix)); });
    ExpectSameRows(fixture);
  };
  without("llama_gqa", "model.");
  without("qwen3", "model.");
  without("gemma2", "model.");
  without("gpt_neox_parallel", "gpt_neox.");
  without("gpt2", "transformer.");
}

TEST_F(FamiliesFilesTest, NamesOfALanguageModelInALargerOneAreTheSameModel) {
  for (const std::string prefix : {"language_model.model.", "model.language_model.", "language_model."}) {
    Use("mistral");
    Rename([&](const std::string& name) {
      if (absl::StartsWith(name, "model.")) return absl::StrCat(prefix, absl::StripPrefix(name, "model."));
      return prefix == "language_model.model." ? "language_model." + name : name;
    });
    ExpectSameRows("mistral");
  }
}

TEST_F(FamiliesFilesTest, OtherHeadsAndBuffersAreLeftOutAndNamed) {
  Use("llama_gqa");
  Add("score.weight", "F32", 4, 16);
  Add("v_head.summary.bias", "F32", 1, 4);
  Add("classifier.dense.weight", "BF16", 2, 4);
  Add("model.layers.0.self_attn.causal_mask", "BOOL", 4, 4);
  ExpectSameRows("llama_gqa");
  EXPECT_THAT((*Load())->info().details,
              AllOf(HasSubstr("not read: classifier.dense.weight, model.layers.0.self_attn.causal_mask, score.weight"),
                    HasSubstr("v_head.summary.bias")));
  // A tensor that could be a part of the model is still an error.
  Add("model.layers.0.self_attn.extra", "F32", 1, 4);
  EXPECT_THAT(Message(), HasSubstr("'model.layers.0.self_attn.extra'"));
}

TEST_F(FamiliesFilesTest, AGitLfsPointerIsSaidToBeOne) {
  for (const char* file : {"model.safetensors", "config.json"}) {
    Use("llama_gqa");
    std::ofstream(root_ / file) << kPointer;
    EXPECT_THAT(Message(), AllOf(HasSubstr(file), HasSubstr("Git LFS pointer"), HasSubstr("git lfs pull")));
  }
  Use("llama_gqa");
  fs::remove(root_ / "model.safetensors");
  std::ofstream(root_ / "pytorch_model.bin") << kPointer;
  EXPECT_THAT(Message(), AllOf(HasSubstr("pytorch_model.bin"), HasSubstr("Git LFS pointer")));
}

TEST_F(FamiliesFilesTest, AConfigWithPythonsNumbersIsReadAndRefusedOnlyWhereTheyMatter) {
  const auto with = [&](const std::string& fields) {
    Use("llama_gqa");
    std::string text = ReadFile(root_ / "config.json");
    text.insert(text.find('{') + 1, fields);
    std::ofstream(root_ / "config.json") << text;
  };
  with(R"("time_step_limit": [0.0, Infinity, -Infinity], "text": "\"NaN", "unused": NaN,)");
  ExpectSameRows("llama_gqa");
  with("");
  ChangeConfig([](Json& config) { config["rms_norm_eps"] = "MARK"; });
  std::string text = ReadFile(root_ / "config.json");
  text.replace(text.find("\"MARK\""), 6, "NaN");
  std::ofstream(root_ / "config.json") << text;
  EXPECT_THAT(Message(), HasSubstr("rms_norm_eps is \"NaN\"; expected a positive number"));
}

TEST_F(FamiliesFilesTest, CodeOfTheCheckpointsOwnIsWarnedOf) {
  Use("llama_gqa");
  EXPECT_EQ((*Load())->info().warning, "");
  ChangeConfig([](Json& config) { config["auto_map"] = {{"AutoModelForCausalLM", "modeling.Other"}}; });
  EXPECT_THAT((*Load())->info().warning, AllOf(HasSubstr("auto_map"), HasSubstr("not run")));
}

TEST_F(FamiliesFilesTest, QuantisationThatDoesNotSayHowIsRefusedForThat) {
  Use("llama_gqa");
  ChangeConfig([](Json& config) { config["quantization_config"] = Json::object(); });
  EXPECT_THAT(Message(), AllOf(HasSubstr("quantization_config is an object"), HasSubstr("remove the field")));
  // An unknown type is reported first.
  ChangeConfig([](Json& config) { config["model_type"] = "mamba"; });
  EXPECT_THAT(Message(), HasSubstr("model_type is \"mamba\""));
}

TEST_F(FamiliesFilesTest, ANameOfTheHubIsSaidToBeOne) {
  ModelOptions options;
  options.path = "openai-community/gpt2";
  const absl::Status status = LoadModel(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("openai-community/gpt2"), HasSubstr("downloads nothing")));
  options.path = "/nowhere/gpt2";
  EXPECT_THAT(LoadModel(options).status().message(), ::testing::Not(HasSubstr("downloaded")));
}

}  // namespace
}  // namespace hookline
