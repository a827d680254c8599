#include "server/model/load/safetensors_checkpoint.h"

#include <string>

#include "gmock/gmock.h"
#include "tests/checkpoint/values_of.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  return Little(header.size(), 8) + header + data;
}

absl::StatusOr<StateDict> Load(const std::string& bytes) {
  const ScratchFile file;
  file.Write(bytes);
  auto weights = ReadSafetensors(file.path());
  if (!weights.ok()) {
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kFailedPrecondition) << weights.status();
    EXPECT_THAT(weights.status().message(), HasSubstr(file.path()));
  }
  return weights;
}

constexpr char kTwo[] = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                        R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})";

TEST(SafetensorsCheckpointTest, TensorsHaveTheirNamesShapesAndValues) {
  const auto weights = Load(File(kTwo, FourFloats()));
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->tensors.size(), 2u);
  EXPECT_TRUE(at::equal(ValuesOf(*weights, "a"), at::tensor({0.0f, 1.0f}).view({2, 1})));
  EXPECT_TRUE(at::equal(ValuesOf(*weights, "b"), at::tensor({2.0f, 3.0f})));
}

TEST(SafetensorsCheckpointTest, DataThatIsNotAlignedIsReadRightly) {
  for (size_t padding = 0; padding < 8; ++padding) {
    const auto weights = Load(File(kTwo + std::string(padding, ' '), FourFloats()));
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_TRUE(at::equal(ValuesOf(*weights, "b"), at::tensor({2.0f, 3.0f})));
  }
}

TEST(SafetensorsCheckpointTest, AGitLfsPointerIsSaidToBeOne) {
  EXPECT_THAT(Load("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").status().message(),
              AllOf(HasSubstr("Git LFS pointer"), HasSubstr("git lfs pull")));
}

TEST(SafetensorsCheckpointTest, EveryCutIsAnErrorThatNamesTheFile) {
  const std::string bytes = File(kTwo, FourFloats());
  for (size_t length = 0; length < bytes.size(); ++length) EXPECT_FALSE(Load(bytes.substr(0, length)).ok()) << length;
}

}  // namespace
}  // namespace hookline
