// Tests nanochat checkpoints with missing or surplus weights, and the options that choose a checkpoint.
#include <torch/version.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "server/model/load.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;
namespace fs = std::filesystem;

std::string ReadFile(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void WriteFile(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

// Returns the checksum of a zip archive (CRC-32 of ISO 3309) as the four bytes that the archive holds.
std::string Checksum(const std::string& bytes) {
  uint32_t crc = 0xffffffff;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xedb88320 & (0 - (crc & 1)));
  }
  crc = ~crc;
  std::string little;
  for (int i = 0; i < 4; ++i) little += static_cast<char>(crc >> (8 * i));
  return little;
}

void ReplaceAll(std::string* text, const std::string& from, const std::string& to) {
  ASSERT_EQ(from.size(), to.size());
  ASSERT_NE(text->find(from), std::string::npos) << from;
  for (size_t at = 0; (at = text->find(from, at)) != std::string::npos; at += to.size()) {
    text->replace(at, from.size(), to);
  }
}

// A copy of a fixture that a test can damage.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& fixture) {
    std::string name = (fs::temp_directory_path() / "hookline-nanochat-XXXXXX").string();
    folder_ = mkdtemp(name.data());
    const fs::path from = fs::path(HOOKLINE_FIXTURES) / "nanochat" / fixture;
    for (const char* file : {"model_000123.pt", "meta_000123.json"}) fs::copy_file(from / file, folder_ / file);
  }
  ~Checkpoint() { fs::remove_all(folder_); }

  fs::path meta() const { return folder_ / "meta_000123.json"; }
  fs::path model() const { return folder_ / "model_000123.pt"; }

  void EditConfig(const std::function<void(Json&)>& edit) const {
    Json json = Json::parse(ReadFile(meta()));
    edit(json["model_config"]);
    WriteFile(meta(), json.dump());
  }

  // Puts another text of the same length into the pickle, and corrects the archive's checksums.
  void EditPickle(const std::string& from, const std::string& to) const {
    std::string bytes = ReadFile(model());
    const size_t begin = bytes.find("\x80\x02");  // the pickle's first bytes
    ASSERT_NE(begin, std::string::npos);
    // The entry's name precedes the pickle; the pickle's STOP precedes the next entry.
    const size_t end = bytes.find("PK\x07\x08", begin);
    ASSERT_NE(end, std::string::npos);
    std::string pickle = bytes.substr(begin, end - begin);
    const std::string before = Checksum(pickle);
    ReplaceAll(&pickle, from, to);
    bytes.replace(begin, pickle.size(), pickle);
    ReplaceAll(&bytes, before, Checksum(pickle));
    WriteFile(model(), bytes);
  }

  absl::Status Load(ModelOptions options = {}) const {
    options.path = folder_.string();
    options.device = "cpu";
    return LoadModel(options).status();
  }

  // Loads the checkpoint and expects an error that blames it, with a message that has all of `texts`.
  void ExpectRefused(const std::vector<std::string>& texts) const {
    const absl::Status status = Load();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    for (const std::string& text : texts) EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.string()));
    EXPECT_LT(status.message().size(), 1000u);
  }

 private:
  fs::path folder_;
};

TEST(NanochatWeightsTest, AWholeCopyLoads) {
  const Checkpoint checkpoint("I-gqa");
  EXPECT_TRUE(checkpoint.Load().ok()) << checkpoint.Load();
  checkpoint.EditPickle("lm_head.weight", "lm_head.weight");
  EXPECT_TRUE(checkpoint.Load().ok()) << checkpoint.Load();
}

TEST(NanochatWeightsTest, WindowPatternsOfOtherLettersAreRefused) {
  const Checkpoint checkpoint("I-gqa");
  for (const Json& value : {Json("SXL"), Json(""), Json(3), Json("S L"), Json::array()}) {
    checkpoint.EditConfig([&](Json& config) { config["window_pattern"] = value; });
    const absl::Status status = checkpoint.Load();
    EXPECT_FALSE(status.ok()) << value;
    EXPECT_THAT(std::string(status.message()), HasSubstr("window_pattern"));
  }
  checkpoint.EditConfig([&](Json& config) { config["window_pattern"] = "sSl"; });
  EXPECT_TRUE(checkpoint.Load().ok()) << checkpoint.Load();
}

TEST(NanochatWeightsTest, AMissingWeightIsNamedWithTheShapeItShouldHave) {
  const Checkpoint checkpoint("I-gqa");
  checkpoint.EditPickle("transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fx.weight");
  checkpoint.ExpectRefused({"model_000123.pt", "transformer.h.1.mlp.c_fc.weight", "(256, 64)", "missing"});
}

TEST(NanochatWeightsTest, AnUnusedWeightIsNamed) {
  // In era A the checkpoint must have an unembedding although no hook point needs it.
  const Checkpoint checkpoint("A-gqa");
  checkpoint.EditPickle("lm_head.weight", "lm_heat.weight");
  checkpoint.ExpectRefused({"model_000123.pt", "lm_head.weight", "missing"});
  const Checkpoint surplus("I-gqa");
  surplus.EditPickle("smear_lambda", "smeer_lambda");  // the other weights of era I remain
  surplus.ExpectRefused({"model_000123.pt"});
}

TEST(NanochatWeightsTest, VariantsThatAreNotComputedAreRefusedByName) {
  const Checkpoint d("B-gqa");
  d.EditPickle("x0_lambdas", "v0_lambdas");
  d.ExpectRefused({"v0_lambdas", "variant D"});
  const Checkpoint experts("A-gqa");
  experts.EditPickle("transformer.h.2.mlp.c_fc.weight", "transformer.h.2.moe.c_fc.weight");
  experts.ExpectRefused({"transformer.h.2.moe.c_fc.weight", "mixture of experts"});
  const Checkpoint router("A-gqa");
  router.EditPickle("transformer.h.2.mlp.c_proj.weight", "transformer.h.2.mlp.router.weight");
  router.ExpectRefused({"transformer.h.2.mlp.router.weight", "mixture of experts"});
}

TEST(NanochatWeightsTest, OptionsThatDoNotApplyAreInvalidArguments) {
  const Checkpoint checkpoint("I-gqa");
  const auto refused = [&](const ModelOptions& options, absl::StatusCode code, const std::string& text) {
    ModelOptions all = options;
    all.path = checkpoint.model().parent_path().string();
    const absl::Status status = LoadModel(all).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  ModelOptions options;
  options.device = "gpu";
  refused(options, absl::StatusCode::kInvalidArgument, "'gpu' is not one of cpu, cuda, cuda:N, auto");
  options.device = "cuda:99";
  refused(options, absl::StatusCode::kInvalidArgument, "'cuda:99'");
  options.device = "cpu";
  options.dtype = "float8";
  refused(options, absl::StatusCode::kInvalidArgument, "'float8' is not one of float32, bfloat16, float16, auto");
  options.dtype = "auto";
  options.step = 7;
  refused(options, absl::StatusCode::kNotFound, "no checkpoint of step 7; there are 123");
}

TEST(NanochatWeightsTest, TheHighestStepIsLoadedUnlessOneIsNamed) {
  const Checkpoint checkpoint("I-gqa");
  const fs::path folder = checkpoint.meta().parent_path();
  fs::copy_file(checkpoint.meta(), folder / "meta_000099.json");
  fs::copy_file(checkpoint.model(), folder / "model_000099.pt");
  ModelOptions options;
  options.path = folder.string();
  options.device = "cpu";
  auto highest = LoadModel(options);
  ASSERT_TRUE(highest.ok()) << highest.status();
  EXPECT_THAT((*highest)->info().details, HasSubstr("step 123"));
  options.step = 99;
  auto named = LoadModel(options);
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_THAT((*named)->info().details, HasSubstr("step 99"));
  EXPECT_EQ((*named)->info().fingerprint, (*highest)->info().fingerprint);
}

TEST(NanochatWeightsTest, Float16OnACpuIsComputedOrRefusedAtStart) {
  const Checkpoint checkpoint("I-gqa");
  ModelOptions options;
  options.dtype = "float16";
  const absl::Status status = checkpoint.Load(options);
  // LibTorch 2.x can compute float16; LoadModel has run a token through the model.
  if (TORCH_VERSION_MAJOR >= 2) {
    EXPECT_TRUE(status.ok()) << status;
    return;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("float16"), HasSubstr("cpu"), HasSubstr("LibTorch")));
}

TEST(NanochatWeightsTest, TheContextIsTenTimesTheTrainedLength) {
  ModelOptions options;
  options.path = std::string(HOOKLINE_FIXTURES) + "/nanochat/I-gqa";
  options.device = "cpu";
  const auto model = LoadModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->info().context_length, 2560);
  EXPECT_EQ((*model)->info().vocabulary_size, 300);
}

}  // namespace
}  // namespace hookline
