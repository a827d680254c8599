// Several models in one server: names apart, memory counted together.
#include "server/model/load_models.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelOptions Named(const std::string& name, const std::string& path) {
  ModelOptions options;
  options.name = name;
  options.path = path;
  return options;
}

class FakeModel : public Model {
 public:
  explicit FakeModel(const std::string& name) { info_.name = name; }
  absl::Status Forward(const at::Tensor&, absl::Span<const int>, Tap) override { return absl::OkStatus(); }
  int64_t blocks_executed() const override { return 0; }
};

class LoadModelsTest : public ::testing::Test {
 protected:
  LoadModelsTest() {
    root_ = std::filesystem::temp_directory_path() /
            absl::StrCat("hookline-", ::testing::UnitTest::GetInstance()->current_test_info()->name(), "-", ::getpid());
  }
  ~LoadModelsTest() override { std::filesystem::remove_all(root_); }

  // A file of `bytes` zeros.
  std::string File(const std::string& name, size_t bytes) {
    const std::filesystem::path path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << std::string(bytes, '\0');
    return path;
  }
  std::string Folder(const std::string& name) { return root_ / name; }

  absl::StatusOr<std::vector<std::unique_ptr<Model>>> Load(const std::vector<ModelOptions>& options,
                                                           int64_t available = 1000) {
    return LoadModels(
        options,
        [this](const ModelOptions& one) -> absl::StatusOr<std::unique_ptr<Model>> {
          loaded_.push_back(one.name);
          if (one.path == "broken") return absl::FailedPreconditionError("broken: corrupt");
          return std::make_unique<FakeModel>(one.name);
        },
        [&](const std::string&) {
          return AvailableMemory{available, "a test"};
        });
  }

  std::filesystem::path root_;
  std::vector<std::string> loaded_;
};

TEST_F(LoadModelsTest, ModelsAreLoadedInTheirOrderUnderTheirNames) {
  auto models = Load({Named("b", "one"), Named("", "some/where/a/"), Named("", "c.pt")});
  ASSERT_TRUE(models.ok()) << models.status();
  EXPECT_THAT(loaded_, ElementsAre("b", "a", "c"));
  EXPECT_EQ((*models)[1]->info().name, "a");
}

TEST_F(LoadModelsTest, NamesThatCannotBeToldApartAreRefusedBeforeLoading) {
  auto status = Load({Named("", "x/d20"), Named("", "y/d20")}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("y/d20"), HasSubstr("two models are named 'd20'")));
  EXPECT_THAT(std::string(Load({Named("", "x/a b")}).status().message()), HasSubstr("'a b' is no name"));
  EXPECT_THAT(std::string(Load({}).status().message()), HasSubstr("1 to 64 times"));
  EXPECT_THAT(std::string(Load(std::vector<ModelOptions>(65)).status().message()), HasSubstr("65 models"));
  EXPECT_THAT(loaded_, ElementsAre());
}

TEST_F(LoadModelsTest, ModelsThatDoNotFitTogetherAreRefusedBeforeTheFirstIsLoaded) {
  ModelOptions a = Named("a", File("a.pt", 600));
  File("b/model-00001-of-00002.safetensors", 300);
  File("b/model-00002-of-00002.safetensors", 300);
  ModelOptions b = Named("b", Folder("b"));
  a.device = b.device = "cpu";
  EXPECT_TRUE(Load({a, b}, 1200).ok());
  loaded_.clear();
  auto status = Load({a, b}, 1199).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("(1200 bytes)"), HasSubstr("(1199 bytes)")));
  EXPECT_THAT(loaded_, ElementsAre());
  b.dtype = "bfloat16";
  EXPECT_TRUE(Load({a, b}, 900).ok()) << "a 2-byte type may halve them";
}

TEST_F(LoadModelsTest, OnlyTheChosenStepOfACheckpointCounts) {
  File("d20/model_000001.pt", 100);
  File("d20/model_000100.pt", 700);
  File("d20/optim_000100.pt", 9000);
  ModelOptions options = Named("", Folder("d20"));
  options.device = "cpu";
  EXPECT_TRUE(Load({options}, 700).ok());
  EXPECT_FALSE(Load({options}, 699).ok());
  options.step = 1;
  EXPECT_TRUE(Load({options}, 100).ok());
}

TEST_F(LoadModelsTest, TheFirstThatFailsIsTheAnswer) {
  auto status = Load({Named("good", "good"), Named("bad", "broken"), Named("never", "good")}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("broken: corrupt"));
  EXPECT_THAT(loaded_, ElementsAre("good", "bad"));
}

}  // namespace
}  // namespace hookline
