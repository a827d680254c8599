// Several models in one server: names apart, memory counted together, before any is loaded.
#include "server/model/load/check_models.h"

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
  // A file of `bytes` zeros.
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
  File("b/model-00001-of-00002.safetensors", 300);
  File("b/model-00002-of-00002.safetensors", 300);
  ModelOptions b = Named("b", Folder("b"));
  a.device = b.device = "cpu";
  EXPECT_TRUE(Check({a, b}, 1200).ok());
  auto status = Check({a, b}, 1199);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("(1200 bytes)"), HasSubstr("(1199 bytes)")));
  b.dtype = "bfloat16";
  EXPECT_TRUE(Check({a, b}, 900).ok()) << "a 2-byte type may halve them";
}

TEST_F(CheckModelsTest, OnlyTheChosenStepOfACheckpointCounts) {
  File("d20/model_000001.pt", 100);
  File("d20/model_000100.pt", 700);
  File("d20/optim_000100.pt", 9000);
  ModelOptions options = Named("", Folder("d20"));
  options.device = "cpu";
  EXPECT_TRUE(Check({options}, 700).ok());
  EXPECT_FALSE(Check({options}, 699).ok());
  options.step = 1;
  EXPECT_TRUE(Check({options}, 100).ok());
}

}  // namespace
}  // namespace hookline
