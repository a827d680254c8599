// The ids, tokens, offsets and decoded texts must be those of Python's tokenizers and tiktoken, which
// fixtures/tokenizers/make_tokenizers.py has recorded.
#include "server/text/tokenizer.h"

#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/text/temporary_folder.h"

namespace hookline {
namespace {

using Ids = std::vector<uint32_t>;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string FileOf(const std::string& family) { return family == "nanochat" ? "tokenizer.pkl" : "tokenizer.json"; }

std::unique_ptr<const Tokenizer> Open(const std::string& family) {
  auto tokenizer = OpenTokenizer(Fixture("tokenizers/" + family + "/" + FileOf(family)));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

class OfEachFamily : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    tokenizer_ = Open(GetParam());
    ASSERT_NE(tokenizer_, nullptr);
    expected_ = nlohmann::json::parse(ReadFile(Fixture("tokenizers/" + GetParam() + "/expected.json")));
    ASSERT_GT(expected_.size(), 10);
  }

  std::unique_ptr<const Tokenizer> tokenizer_;
  nlohmann::json expected_;
};

TEST_P(OfEachFamily, IdsAreThoseOfPython) {
  for (const auto& one : expected_) {
    const auto text = one["text"].get<std::string>();
    const auto tokens = tokenizer_->Encode(text, tokenizer_->added_by_default());
    ASSERT_TRUE(tokens.ok()) << text << ": " << tokens.status();
    EXPECT_EQ(tokens->ids, one["ids"].get<Ids>()) << text;
    const auto plain = tokenizer_->Encode(text, AddedTokens());
    ASSERT_TRUE(plain.ok()) << text;
    EXPECT_EQ(plain->ids, one["plain_ids"].get<Ids>()) << text;
  }
}

TEST_P(OfEachFamily, TokensAndTheirCharactersAreThoseOfPython) {
  for (const auto& one : expected_) {
    const auto text = one["text"].get<std::string>();
    const auto tokens = tokenizer_->Encode(text, tokenizer_->added_by_default());
    ASSERT_TRUE(tokens.ok()) << text;
    std::vector<std::string> spellings;
    std::vector<std::pair<uint32_t, uint32_t>> offsets;
    for (size_t i = 0; i < tokens->ids.size(); ++i) {
      spellings.emplace_back((*tokenizer_->table())[tokens->ids[i]]);
      offsets.emplace_back(tokens->begins[i], tokens->ends[i]);
    }
    EXPECT_EQ(spellings, one["tokens"].get<std::vector<std::string>>()) << text;
    EXPECT_EQ(offsets, (one["offsets"].get<std::vector<std::pair<uint32_t, uint32_t>>>())) << text;
  }
}

TEST_P(OfEachFamily, DecodesAsPythonDoes) {
  for (const auto& one : expected_) {
    const auto ids = one["ids"].get<Ids>();
    const auto text = tokenizer_->Decode(ids, /*skip_special_tokens=*/true);
    ASSERT_TRUE(text.ok());
    EXPECT_EQ(*text, one["decoded"].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, OfEachFamily,
                         ::testing::Values("gpt2", "llama3", "qwen", "llama2", "gemma", "unigram", "wordpiece",
                                           "nanochat"),
                         [](const auto& info) { return info.param; });

TEST(SpecialTokens, AreKnownByTheirRoles) {
  const std::vector<SpecialToken> tokens = Open("llama3")->special_tokens(/*most=*/10);
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_EQ(tokens[0].role, "bos");
  EXPECT_EQ(tokens[0].token, "<|begin_of_text|>");
  EXPECT_EQ(tokens[1].role, "eos");
  EXPECT_EQ(tokens[1].token, "<|end_of_text|>");
}

TEST(SpecialTokens, OfNanochatAreAddedOnlyIfAskedFor) {
  const auto tokenizer = Open("nanochat");
  EXPECT_EQ(tokenizer->added_by_default().size(), 0u);
  ASSERT_EQ(tokenizer->added().before.size(), 1u);
  EXPECT_EQ(tokenizer->added().before[0].token, "<|bos|>");
  EXPECT_EQ(tokenizer->added().before[0].role, "bos");
}

TEST(SpecialTokens, AreAddedAsTheConfigSaysWhateverThePostProcessorDoes) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("tokenizer.json", ReadFile(Fixture("tokenizers/llama3/tokenizer.json")));
  folder.Write("tokenizer_config.json", R"({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",)"
                                        R"( "add_bos_token": false, "add_eos_token": true})");
  const auto tokenizer = OpenTokenizer(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->added().before, IsEmpty());
  ASSERT_EQ((*tokenizer)->added().after.size(), 1u);
  EXPECT_EQ((*tokenizer)->added().after[0].token, "<|end_of_text|>");
}

TEST(SpecialTokens, TakeTheirNamesFromTheMapWhereTheConfigHasNone) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("tokenizer.json", ReadFile(Fixture("tokenizers/gpt2/tokenizer.json")));
  folder.Write("special_tokens_map.json", R"({"eos_token": {"content": "<|endoftext|>"}})");
  const auto tokenizer = OpenTokenizer(path);
  ASSERT_TRUE(tokenizer.ok());
  const std::vector<SpecialToken> tokens = (*tokenizer)->special_tokens(10);
  ASSERT_EQ(tokens.size(), 1u);
  EXPECT_EQ(tokens[0].role, "eos");
}

TEST(Demo, ItsTokenizerGivesBytes) {
  const auto tokenizer = OpenTokenizer(Fixture("nanochat/demo/tokenizer.pkl"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto tokens = (*tokenizer)->Encode("Hi\xc3\xa9", (*tokenizer)->added());
  ASSERT_TRUE(tokens.ok());
  EXPECT_THAT(tokens->ids, ElementsAre(256, 'H', 'i', 0xc3, 0xa9));
}

TEST(TokenTable, CutsLongSpellingsBetweenCharacters) {
  TokenTable table;
  std::string spelling(255, 'a');
  table.Add(spelling + "\xc3\xa9", /*is_special=*/false);
  EXPECT_EQ(table.Text(0), spelling);
  EXPECT_EQ(table.longest_text_bytes(), 255u);
  EXPECT_EQ(table[0].size(), 257u);
  EXPECT_EQ(table[1], "");
}

}  // namespace
}  // namespace hookline
