#include "server/base/json.h"

#include <string>

#include "gmock/gmock.h"

namespace hookline {
namespace {

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

}  // namespace
}  // namespace hookline
