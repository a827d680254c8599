#include "server/text/model_tokenizers.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/temporary_folder.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

TEST(ModelTokenizers, AreFoundBesideTheCheckpoint) {
  ModelTokenizers tokenizers;
  tokenizers.Discover("demo", Fixture("nanochat/demo/"));
  ASSERT_NE(tokenizers.Get("demo"), nullptr);
  EXPECT_EQ(tokenizers.Get("demo")->table()->size(), 257u);
}

TEST(ModelTokenizers, AreFoundWhereNanochatKeepsThem) {
  const TemporaryFolder home;
  home.Write("tokenizer/tokenizer.pkl", ReadFile(Fixture("tokenizers/nanochat/tokenizer.pkl")));
  home.Write("base_checkpoints/d20/meta_000001.json", "{}");
  ModelTokenizers tokenizers;
  tokenizers.Discover("d20", home.path() + "/base_checkpoints/d20");
  EXPECT_NE(tokenizers.Get("d20"), nullptr) << tokenizers.WhyMissing("d20");
}

TEST(ModelTokenizers, WithoutOneTextIsRefusedByTheFilesThatWereLookedFor) {
  const TemporaryFolder folder;
  ModelTokenizers tokenizers;
  tokenizers.Discover("m", folder.path());
  const auto found = tokenizers.Find("m");
  ASSERT_EQ(found.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(found.status().message()), HasSubstr(folder.path() + "/tokenizer.json"));
  EXPECT_THAT(std::string(found.status().message()), HasSubstr(folder.path() + "/tokenizer.pkl"));
  EXPECT_THAT(std::string(found.status().message()), HasSubstr("--tokenizer m=PATH"));
}

TEST(ModelTokenizers, OneThatCannotBeUsedIsAsNoneAndSaysWhy) {
  const TemporaryFolder folder;
  folder.Write("tokenizer.json", "{}");
  ModelTokenizers tokenizers;
  tokenizers.Discover("m", folder.path());
  EXPECT_EQ(tokenizers.Get("m"), nullptr);
  EXPECT_THAT(tokenizers.WhyMissing("m"), HasSubstr("cannot be used"));
}

TEST(ModelTokenizers, GivenByFlagMustWork) {
  const TemporaryFolder folder;
  ModelTokenizers tokenizers;
  EXPECT_EQ(tokenizers.Open("m", folder.path()).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(tokenizers.Open("m", Fixture("tokenizers/gpt2")).ok());
  EXPECT_NE(tokenizers.Get("m"), nullptr);
}

TEST(ModelTokenizers, WarnOfIdsThatTheModelDoesNotHave) {
  ModelTokenizers tokenizers;
  ASSERT_TRUE(tokenizers.Open("m", Fixture("tokenizers/gpt2")).ok());
  const int64_t size = tokenizers.Get("m")->table()->size();
  EXPECT_EQ(tokenizers.Warning("m", size), std::nullopt);
  ASSERT_TRUE(tokenizers.Warning("m", size - 1).has_value());
  EXPECT_THAT(*tokenizers.Warning("m", size - 1), HasSubstr(std::to_string(size)));
}

}  // namespace
}  // namespace hookline
