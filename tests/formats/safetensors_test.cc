#include "server/formats/safetensors.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  return Little(header.size(), 8) + header + data;
}

absl::StatusOr<std::vector<SafetensorsTensor>> Load(const std::string& bytes) {
  const ScratchFile scratch;
  scratch.Write(bytes);
  const auto file = InputFile::Open(scratch.path());
  if (!file.ok()) return file.status();
  auto tensors = ReadSafetensorsHeader(**file);
  if (!tensors.ok()) {
    EXPECT_EQ(tensors.status().code(), absl::StatusCode::kFailedPrecondition) << tensors.status();
  }
  return tensors;
}

std::string Refusal(const std::string& header, const std::string& data = FourFloats()) {
  const auto tensors = Load(File(header, data));
  EXPECT_FALSE(tensors.ok()) << header;
  return std::string(tensors.status().message());
}

std::string Tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat(R"({"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":)", offsets, "}");
}

constexpr char kTwo[] = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                        R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})";

TEST(SafetensorsTest, TensorsHaveTheirNamesShapesAndPlaces) {
  const std::string bytes = File(kTwo, FourFloats());
  const auto tensors = Load(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  const SafetensorsTensor& a = tensors->at(0);
  const SafetensorsTensor& b = tensors->at(1);
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, "F32");
  EXPECT_THAT(a.shape, ElementsAre(2, 1));
  EXPECT_EQ(bytes.substr(a.offset, a.bytes), FourFloats().substr(0, 8));
  EXPECT_EQ(b.name, "b");
  EXPECT_THAT(b.shape, ElementsAre(2));
  EXPECT_EQ(bytes.substr(b.offset, b.bytes), FourFloats().substr(8));
}

TEST(SafetensorsTest, WhatIsWrittenIsRead) {
  SafetensorsHeader header({{"format", "pt"}});
  header.Add("first \"quoted\"", "F32", {2, 1}, 0, 8);
  header.Add("second", "I64", {1}, 8, 16);
  for (const size_t min_bytes : {0, 1000}) {
    const std::string begin = header.Encode(min_bytes);
    EXPECT_EQ(begin.size() % 64, 0u);
    EXPECT_GE(begin.size(), min_bytes);
    const auto tensors = Load(begin + FourFloats());
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    ASSERT_EQ(tensors->size(), 2u);
    EXPECT_EQ(tensors->at(0).name, "first \"quoted\"");
    EXPECT_EQ(tensors->at(1).dtype, "I64");
    EXPECT_EQ(tensors->at(1).offset, static_cast<int64_t>(begin.size()) + 8);
  }
}

TEST(SafetensorsTest, AWrongHeaderLengthIsRefused) {
  for (const uint64_t length : {uint64_t{17}, uint64_t{1} << 30, UINT64_MAX, UINT64_MAX - 7, uint64_t{1} << 63}) {
    EXPECT_THAT(Load(Little(length, 8) + "{}").status().message(), HasSubstr(absl::StrCat(length))) << length;
  }
  EXPECT_FALSE(Load("1234567").ok());
}

TEST(SafetensorsTest, OffsetsThatOverlapLeaveHolesOrLeaveTheFileAreRefused) {
  const auto two = [](const std::string& a, const std::string& b) {
    return absl::StrCat("{\"a\":", Tensor("F32", "[2]", a), ",\"b\":", Tensor("F32", "[2]", b), "}");
  };
  EXPECT_THAT(Refusal(two("[0,8]", "[4,12]")), AllOf(HasSubstr("'b'"), HasSubstr("inside the one before")));
  EXPECT_THAT(Refusal(two("[0,8]", "[0,8]")), HasSubstr("inside the one before"));
  EXPECT_THAT(Refusal(two("[0,8]", "[16,24]"), std::string(24, '\0')), HasSubstr("leaving a hole"));
  EXPECT_THAT(Refusal(two("[0,8]", "[12,20]")), AllOf(HasSubstr("'b'"), HasSubstr("16 bytes of data")));
  EXPECT_THAT(Refusal(two("[0,8]", "[8,0]")), HasSubstr("data_offsets 8 to 0"));
  EXPECT_THAT(Refusal(two("[0,8]", "[8,16]"), FourFloats() + "more"), HasSubstr("of which tensors use 16"));
  EXPECT_THAT(Refusal(two("[0,8]", "[18446744073709551608,18446744073709551615]")), HasSubstr("'b'"));
}

TEST(SafetensorsTest, ShapesThatTheDataDoesNotHaveAreRefused) {
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F32", "[5]", "[0,16]") + "}"), HasSubstr("shape and dtype make 20"));
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F32", "[-4]", "[0,16]") + "}"), HasSubstr("'a'"));
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F32", "[4.0]", "[0,16]") + "}"), HasSubstr("'a'"));
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F32", "[4294967296,4294967296,4]", "[0,16]") + "}"),
              HasSubstr("larger than any file"));
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F32", "[0,18446744073709551615]", "[0,0]") + "}", ""), HasSubstr("'a'"));
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]") + "}"), HasSubstr("at most 8"));
}

TEST(SafetensorsTest, AnUnknownDtypeIsRefusedByName) {
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("F8_E4M3", "[16]", "[0,16]") + "}"),
              AllOf(HasSubstr("'a'"), HasSubstr("'F8_E4M3', float8 weights, which are not read")));
  EXPECT_THAT(Refusal("{\"a\":" + Tensor("U32", "[4]", "[0,16]") + "}"),
              AllOf(HasSubstr("'U32'"), HasSubstr("packed quantised weights")));
  EXPECT_THAT(Refusal(R"({"a":{"dtype":3,"shape":[4],"data_offsets":[0,16]}})"), HasSubstr("no dtype"));
}

TEST(SafetensorsTest, AHeaderThatIsNoObjectOfObjectsIsRefused) {
  for (const char* header :
       {"", "[]", "null", "{", R"({"a":1})", R"({"a":{}})", R"({"a":[]})", "\xff\xfe", "{\"a\":}"}) {
    Refusal(header);
  }
  EXPECT_THAT(Refusal(std::string(1 << 20, '[')), HasSubstr("nests too deeply"));
  std::string deep = "{\"__metadata__\":";
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_THAT(Refusal(deep), HasSubstr("nests too deeply"));
}

TEST(SafetensorsTest, EveryCutIsAnError) {
  const std::string bytes = File(kTwo, FourFloats());
  for (size_t length = 0; length < bytes.size(); ++length) EXPECT_FALSE(Load(bytes.substr(0, length)).ok()) << length;
}

}  // namespace
}  // namespace hookline
