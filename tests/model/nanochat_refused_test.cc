// Tests nanochat checkpoints whose metadata and weights do not fit each other.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "server/model/load.h"
#include "tests/model/scratch_folder.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class NanochatRefusedTest : public ScratchFolderTest {
 protected:
  NanochatRefusedTest() {
    const fs::path fixture = fs::path(HOOKLINE_FIXTURES) / "nanochat" / "A-gqa";
    for (const char* name : {"model_000123.pt", "meta_000123.json"}) fs::copy(fixture / name, root_ / name);
  }

  // Returns the error after a change of `key` in model_config.
  std::string RefusalOf(const std::string& key, const Json& value) {
    const fs::path fixture = fs::path(HOOKLINE_FIXTURES) / "nanochat" / "A-gqa" / "meta_000123.json";
    Json meta = Json::parse(std::ifstream(fixture));
    meta["model_config"][key] = value;
    std::ofstream(root_ / "meta_000123.json") << meta;
    return Refusal();
  }

  std::string Refusal() {
    ModelOptions options;
    options.path = root_;
    options.device = "cpu";
    const absl::Status status = LoadModel(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  }
};

TEST_F(NanochatRefusedTest, MetadataThatContradictTheWeightsAreRefusedByTheWeightsName) {
  EXPECT_THAT(RefusalOf("n_layer", 4), AllOf(HasSubstr("'transformer.h.3.attn.c_q.weight'"), HasSubstr("is missing")));
  EXPECT_THAT(RefusalOf("n_layer", 2), AllOf(HasSubstr("'transformer.h.2."), HasSubstr("does not belong to this")));
  EXPECT_THAT(RefusalOf("n_embd", 128), AllOf(HasSubstr("'transformer.wte.weight'"), HasSubstr("128)")));
  EXPECT_THAT(RefusalOf("n_kv_head", 4), AllOf(HasSubstr("'transformer.h.0.attn.c_k.weight'"), HasSubstr("(64, 64)")));
  EXPECT_THAT(RefusalOf("vocab_size", 1000), HasSubstr("'transformer.wte.weight'"));
}

TEST_F(NanochatRefusedTest, MetadataThatMakeNoModelAreRefusedByFieldAndValue) {
  EXPECT_THAT(RefusalOf("n_head", 3), HasSubstr("model_config.n_embd 64"));
  EXPECT_THAT(RefusalOf("n_head", 0), HasSubstr("model_config.n_head is 0"));
  EXPECT_THAT(RefusalOf("n_layer", int64_t{1} << 40), HasSubstr("model_config.n_layer is 1099511627776"));
  EXPECT_THAT(RefusalOf("sequence_len", "long"), HasSubstr("model_config.sequence_len is \"long\""));
  EXPECT_THAT(RefusalOf("n_embd", nullptr), HasSubstr("model_config.n_embd is missing"));
  EXPECT_THAT(RefusalOf("window_pattern", 5), HasSubstr("model_config.window_pattern is 5"));
}

TEST_F(NanochatRefusedTest, BrokenMetadataAreAnErrorAndNoCrash) {
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  for (const std::string& text : {std::string("{"), std::string("[]"), std::string("{\"model_config\": 1}"),
                                  "{\"model_config\": {\"sequence_len\": " + deep + "}}"}) {
    std::ofstream(root_ / "meta_000123.json") << text;
    EXPECT_THAT(Refusal(), HasSubstr("meta_000123.json")) << text.substr(0, 40);
  }
}

TEST_F(NanochatRefusedTest, ACheckpointCutShortIsAnErrorThatNamesTheFile) {
  const uint64_t bytes = fs::file_size(root_ / "model_000123.pt");
  for (const uint64_t length : {bytes - 1, bytes / 2, uint64_t{100}, uint64_t{0}}) {
    fs::resize_file(root_ / "model_000123.pt", length);
    EXPECT_THAT(Refusal(), HasSubstr("model_000123.pt")) << length;
  }
}

}  // namespace
}  // namespace hookline
