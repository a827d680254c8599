#include "server/base/json.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(JsonTest, AnObjectIsRead) {
  const auto json = ParseJsonObject(R"({"a": {"b": [1, "[[[["]}})", 3);
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["a"]["b"][0], 1);
}

TEST(JsonTest, WhatIsNotAnObjectIsRefused) {
  for (const char* text : {"", "null", "[]", "{", "{} x", "\xff", "{\"a\":\"\xff\"}"}) {
    EXPECT_THAT(ParseJsonObject(text, 8).status().message(), HasSubstr("is not a JSON object")) << text;
  }
}

TEST(JsonTest, HowDeepItMayNestIsTheCallersLimit) {
  EXPECT_TRUE(ParseJsonObject(R"({"a":[[]]})", 3).ok());
  EXPECT_THAT(ParseJsonObject(R"({"a":[[]]})", 2).status().message(), HasSubstr("nests too deeply: more than 2"));
  EXPECT_THAT(ParseJsonObject(std::string(1 << 20, '['), 100).status().message(), HasSubstr("nests too deeply"));
}

TEST(JsonTest, AnIntegerOutOfItsRangeIsNone) {
  const auto json = ParseJsonObject(
      R"({"n":[5, -3, 9223372036854775807, 9223372036854775808, 18446744073709551615, 1e300, 5.0, "5", true]})", 2);
  ASSERT_TRUE(json.ok()) << json.status();
  std::vector<std::optional<int64_t>> read;
  for (const auto& number : (*json)["n"]) {
    read.push_back(JsonInteger(number, -2, std::numeric_limits<int64_t>::max()));
  }
  EXPECT_THAT(read, ElementsAre(5, std::nullopt, std::numeric_limits<int64_t>::max(), std::nullopt, std::nullopt,
                                std::nullopt, std::nullopt, std::nullopt, std::nullopt));
  EXPECT_EQ(JsonInteger((*json)["n"][0], 0, 4), std::nullopt);
}

}  // namespace
}  // namespace hookline
