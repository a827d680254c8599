#include "server/model/load/checkpoint_folder.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/checkpoint/values_of.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  return Little(header.size(), 8) + header + data;
}

std::string Tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat(R"({"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":)", offsets, "}");
}

// Returns a pickled file that has four floats as tensor `name`.
std::string BinFile(const std::string& name) {
  return TorchFile(Pickle::StateDict(name, {"FloatStorage", "0", 4, 0, {4}, {1}}), {FourFloats()});
}

class ShardsTest : public ::testing::Test {
 protected:
  ShardsTest() {
    root_ = fs::temp_directory_path() /
            absl::StrCat("hookline-", ::testing::UnitTest::GetInstance()->current_test_info()->name(), "-", getpid());
    fs::create_directories(root_ / "model");
    fs::create_directories(root_ / "bin");
    Write("model/one.safetensors", File("{\"a\":" + Tensor("F32", "[4]", "[0,16]") + "}", FourFloats()));
    Write("outside.safetensors", File("{\"b\":" + Tensor("F32", "[4]", "[0,16]") + "}", FourFloats()));
  }
  ~ShardsTest() override { fs::remove_all(root_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(root_ / name, std::ios::binary) << bytes;
  }

  absl::StatusOr<StateDict> LoadIndex(const std::string& index) {
    Write("model/model.safetensors.index.json", index);
    return ReadCheckpointFolder(root_ / "model");
  }

  fs::path root_;
};

TEST_F(ShardsTest, AShardOutsideTheFolderIsRefused) {
  EXPECT_TRUE(LoadIndex(R"({"weight_map":{"a":"one.safetensors"}})").ok());
  const std::string absolute = root_ / "outside.safetensors";
  for (const std::string& name : {std::string("../outside.safetensors"), absolute, std::string(".."), std::string(""),
                                  std::string("x/../../outside.safetensors")}) {
    const auto weights = LoadIndex(R"({"weight_map":{"b":")" + name + R"("}})");
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kFailedPrecondition) << name;
    EXPECT_THAT(weights.status().message(), HasSubstr("not a file of this folder")) << name;
  }
}

TEST_F(ShardsTest, AnIndexThatItsShardsContradictIsRefused) {
  EXPECT_THAT(LoadIndex(R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors"}})").status().message(),
              AllOf(HasSubstr("'b'"), HasSubstr("is not in 'one.safetensors'")));
  EXPECT_THAT(LoadIndex(R"({"weight_map":{"b":"one.safetensors"}})").status().message(), HasSubstr("'a'"));
  EXPECT_EQ(LoadIndex(R"({"weight_map":{"a":"two.safetensors"}})").status().code(), absl::StatusCode::kNotFound);
  for (const char* index : {"", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})", "[1]"}) {
    EXPECT_FALSE(LoadIndex(index).ok()) << index;
  }
}

TEST_F(ShardsTest, AFolderWithNeitherFileIsNotFound) {
  EXPECT_EQ(ReadCheckpointFolder(root_).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ShardsTest, PickledFilesAreReadWhereThereAreNoSafetensors) {
  Write("bin/pytorch_model.bin", BinFile("w"));
  const auto single = ReadCheckpointFolder(root_ / "bin");
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_TRUE(at::equal(ValuesOf(*single, "w"), at::arange(4, at::kFloat)));
  Write("bin/model.safetensors", File("{\"a\":" + Tensor("F32", "[4]", "[0,16]") + "}", FourFloats()));
  EXPECT_TRUE(ReadCheckpointFolder(root_ / "bin")->tensors.contains("a"));
}

TEST_F(ShardsTest, PickledShardsAreReadByTheirIndex) {
  Write("bin/pytorch_model-1.bin", BinFile("a"));
  Write("bin/pytorch_model-2.bin", BinFile("b"));
  Write("bin/pytorch_model.bin.index.json",
        R"({"metadata":{},"weight_map":{"a":"pytorch_model-1.bin","b":"pytorch_model-2.bin"}})");
  const auto weights = ReadCheckpointFolder(root_ / "bin");
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->tensors.size(), 2u);
  EXPECT_TRUE(at::equal(ValuesOf(*weights, "b"), at::arange(4, at::kFloat)));
  Write("bin/pytorch_model.bin.index.json", R"({"weight_map":{"a":"pytorch_model-2.bin"}})");
  EXPECT_THAT(ReadCheckpointFolder(root_ / "bin").status().message(), HasSubstr("'b'"));
}

}  // namespace
}  // namespace hookline
