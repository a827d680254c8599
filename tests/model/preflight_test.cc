// Tests several models in one server: distinct names, and memory that is counted together before any model is loaded.
#include "server/model/load/preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/model/scratch_folder.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelOptions Named(const std::string& name, const std::string& path) {
  ModelOptions options;
  options.name = name;
  options.path = path;
  return options;
}

class CheckModelsTest : public ScratchFolderTest {
 protected:
  // Writes a file of `bytes` zeros.
  std::string File(const std::string& name, size_t bytes) {
    const std::filesystem::path path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << std::string(bytes, '\0');
    return path;
  }
  std::string Folder(const std::string& name) { return root_ / name; }

  static absl::Status Check(const std::vector<ModelOptions>& models, int64_t available = 1000) {
    return CheckModels(models, [&](const std::string&) { return AvailableMemory{available, "a test"}; });
  }
};

TEST_F(CheckModelsTest, ANameIsGivenOrTheLastPartOfThePath) {
  EXPECT_EQ(ModelName(Named("b", "one")), "b");
  EXPECT_EQ(ModelName(Named("", "some/where/a/")), "a");
  EXPECT_EQ(ModelName(Named("", "c.pt")), "c");
  EXPECT_TRUE(Check({Named("b", "one"), Named("", "some/where/a/"), Named("", "c.pt")}).ok());
}

TEST_F(CheckModelsTest, NamesThatCannotBeToldApartAreRefused) {
  auto status = Check({Named("", "x/d20"), Named("", "y/d20")});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("y/d20"), HasSubstr("two models are named 'd20'")));
  EXPECT_THAT(std::string(Check({Named("", "x/a b")}).message()), HasSubstr("'a b' is not a name"));
  EXPECT_THAT(std::string(Check(std::vector<ModelOptions>(65)).message()), HasSubstr("65 models"));
}

TEST_F(CheckModelsTest, ModelsThatDoNotFitTogetherAreRefused) {
  ModelOptions a = Named("a", File("a.pt", 600));
  ModelOptions b = Named("b", File("b.pt", 600));
  a.device = b.device = "cpu";
  EXPECT_TRUE(Check({a, b}, 1200).ok());
  auto status = Check({a, b}, 1199);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("(1200 bytes)"), HasSubstr("(1199 bytes)")));
  b.dtype = "bfloat16";
  EXPECT_TRUE(Check({a, b}, 900).ok()) << "a 2-byte type may halve them";
}

TEST_F(CheckModelsTest, AModelThatFitsWithoutItsUnembeddingIsNotRefusedForIt) {
  ModelOptions options = Named("", std::string(HOOKLINE_FIXTURES) + "/families/llama_gqa");
  options.device = "cpu";
  const int64_t whole = CountWeights(options)->front().bytes;
  EXPECT_TRUE(Check({options}, whole).ok());
  EXPECT_EQ(Check({options}, whole - 1).code(), absl::StatusCode::kResourceExhausted);
  options.evaluation = false;
  const int64_t rest = CountWeights(options)->front().bytes;
  EXPECT_LT(rest, whole);
  EXPECT_TRUE(Check({options}, rest).ok());
  EXPECT_FALSE(Check({options}, rest - 1).ok());
}

TEST_F(CheckModelsTest, OnlyTheChosenStepOfACheckpointCounts) {
  // The steps of a real run do not differ in size. These do, which shows which of them counts.
  const auto copy = [&](const std::string& fixture, const std::string& step) {
    const std::filesystem::path from = std::filesystem::path(HOOKLINE_FIXTURES) / "nanochat" / fixture;
    std::filesystem::create_directories(root_ / "d20");
    std::filesystem::copy_file(from / "model_000123.pt", root_ / "d20" / ("model_" + step + ".pt"));
    std::filesystem::copy_file(from / "meta_000123.json", root_ / "d20" / ("meta_" + step + ".json"));
    ModelOptions options = Named("", from);
    options.device = "cpu";
    return CountWeights(options)->front().bytes;
  };
  const int64_t first = copy("A-mha", "000001"), newest = copy("A-gqa", "000100");
  File("d20/optim_000100.pt", 9000000);
  ASSERT_GT(newest, first);
  ModelOptions options = Named("", Folder("d20"));
  options.device = "cpu";
  EXPECT_TRUE(Check({options}, newest).ok());
  EXPECT_FALSE(Check({options}, newest - 1).ok());
  options.step = 1;
  EXPECT_TRUE(Check({options}, first).ok());
}

}  // namespace
}  // namespace hookline
