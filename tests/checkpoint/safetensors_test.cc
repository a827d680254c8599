#include "server/model/checkpoint/safetensors.h"

#include <sys/stat.h>

#include <random>

#include "gmock/gmock.h"
#include "tests/checkpoint/files.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i)));
  return file + header + data;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string Refusal(const std::string& contents) {
    const auto read = ReadSafetensors(folder_.Write("model.safetensors", contents));
    EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition) << read.status();
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("model.safetensors"));
    return std::string(read.status().message());
  }

  TemporaryFolder folder_;
};

TEST_F(SafetensorsTest, ReadsTensorsWhereTheyLie) {
  const auto read = ReadSafetensors(folder_.Write(
      "a.safetensors", File(R"({"__metadata__":{"x":"y"},"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},)"
                            R"("a":{"dtype":"U8","shape":[2,1],"data_offsets":[0,2]}})",
                            std::string("\x01\x02\x00\x00\x80\x3f\x00\x00\x00\x40", 10))));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tensors.at("a").sum().item<int>(), 3);
  EXPECT_EQ(read->tensors.at("b").sum().item<float>(), 3);  // unaligned in the file
}

TEST_F(SafetensorsTest, HeadersThatLieAreRefused) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::string data(8, 0);
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}})", data + "x")), HasSubstr("'a'"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", data)),
              HasSubstr("data_offsets"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", data)),
              HasSubstr("8 bytes of data"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}})", data)), HasSubstr("'F9'"));
  EXPECT_THAT(Refusal(File(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", data)), HasSubstr("no dtype"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", data)), HasSubstr("shape"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", data)),
              HasSubstr("larger than any file"));
  EXPECT_THAT(Refusal(File(R"({"a":5})", data)), HasSubstr("'a'"));
  EXPECT_THAT(Refusal(File("[1,2]", data)), HasSubstr("JSON object"));
  EXPECT_THAT(Refusal(File(good, data + "more")), HasSubstr("of which tensors use 8"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                           R"("b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
                           data)),
              HasSubstr("inside the one before"));
  EXPECT_THAT(Refusal(File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", data)), HasSubstr("hole"));
  EXPECT_THAT(Refusal(File(R"({"a":)" + std::string(100000, '['), data)), HasSubstr("too deeply"));
  EXPECT_THAT(Refusal(std::string(8, '\xff') + "{}"), HasSubstr("header"));
  EXPECT_THAT(Refusal("short"), HasSubstr("too short"));
}

TEST_F(SafetensorsTest, AFileCutAnywhereIsRefusedAndNoChangeOfBytesDoesHarm) {
  const std::string whole = File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                 R"("b":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]}})",
                                 std::string(16, 'x'));
  for (size_t length = 1; length < whole.size(); ++length) Refusal(whole.substr(0, length));
  std::mt19937 random(1);
  for (int round = 0; round < 1500; ++round) {
    std::string file = whole;
    for (int i = 0; i < 2; ++i) file[random() % file.size()] = static_cast<char>(random());
    const auto read = ReadSafetensors(folder_.Write("model.safetensors", file));
    if (!read.ok()) continue;
    for (const auto& [name, tensor] : read->tensors) (void)tensor.to(at::kDouble).sum().item<double>();
  }
}

TEST_F(SafetensorsTest, ShardsAreFoundByTheIndexAndMustAgreeWithIt) {
  const std::string index = folder_.path() + "/model.safetensors.index.json";
  const std::string shard = File(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x");
  folder_.Write("one.safetensors", shard);
  const auto read = [&](const std::string& map) {
    folder_.Write("model.safetensors.index.json", R"({"weight_map":)" + map + "}");
    return ReadSafetensorsFolder(folder_.path());
  };
  EXPECT_TRUE(read(R"({"a":"one.safetensors"})").ok());
  EXPECT_THAT(std::string(read(R"({"a":"one.safetensors","b":"one.safetensors"})").status().message()),
              HasSubstr("'b'"));
  EXPECT_THAT(std::string(read(R"({"c":"one.safetensors"})").status().message()), HasSubstr("'a'"));
  for (const char* name : {"../one.safetensors", "/etc/passwd", "", "."}) {
    EXPECT_THAT(std::string(read(std::string(R"({"a":")") + name + "\"}").status().message()),
                HasSubstr("no file of this folder"));
  }
  EXPECT_EQ(read(R"({"a":"two.safetensors"})").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(read("5").ok());
}

TEST_F(SafetensorsTest, AFolderWithoutWeightsSaysSo) {
  EXPECT_EQ(ReadSafetensorsFolder(folder_.path()).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace hookline
