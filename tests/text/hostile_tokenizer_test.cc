// Whatever a file or a text holds, the result is an answer or an error, and the process goes on.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/text/tokenizer.h"
#include "tests/text/temporary_folder.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::unique_ptr<const Tokenizer>> OpenJson(const std::string& json) {
  const TemporaryFolder folder;
  return OpenTokenizer(folder.Write("tokenizer.json", json));
}

std::string Gpt2() { return ReadFile(Fixture("tokenizers/gpt2/tokenizer.json")); }

void ExpectRefused(const std::string& json, const std::string& why) {
  const auto tokenizer = OpenJson(json);
  ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition) << tokenizer.status();
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json: "));
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(why));
}

TEST(HostileFile, ThatIsNoTokenizerIsRefused) {
  ExpectRefused("{}", "model");
  ExpectRefused("[1, 2]", "");
  ExpectRefused("not JSON", "");
  ExpectRefused(R"({"model": {"type": "BPE", "vocab": {"\ud800": 1}, "merges": []}})", "");
  ExpectRefused(R"({"model": {"type": "Oracle"}})", "");
}

TEST(HostileFile, ThatNestsWithoutEndIsRefused) { ExpectRefused(std::string(1 << 20, '['), "recursion"); }

TEST(HostileFile, CutAnywhereIsRefused) {
  const std::string json = Gpt2();
  for (size_t size = 1; size < json.size(); size += 997) {
    EXPECT_FALSE(OpenJson(json.substr(0, size)).ok()) << size;
  }
}

TEST(HostileFile, WithRandomIdsIsRefused) {
  ExpectRefused(absl::StrReplaceAll(Gpt2(), {{"\"dropout\":null", "\"dropout\":0.5"}}), "dropout");
}

TEST(HostileFile, WhoseNormalizerGrowsATextWithoutBoundIsRefused) {
  const std::string replace =
      R"({"type":"Replace","pattern":{"String":"a"},"content":")" + std::string(1000, 'b') + "\"}";
  ExpectRefused(absl::StrReplaceAll(Gpt2(), {{"\"normalizer\":null", "\"normalizer\":" + replace}}), "normalizer");
}

TEST(HostileFile, OfAnIdBeyondAllVocabulariesIsRefused) {
  ExpectRefused(absl::StrReplaceAll(Gpt2(), {{"\"!\":0", "\"!\":4294967295"}}), "ids below");
}

TEST(HostileFile, WhosePatternNeverEndsGivesAnErrorForAText) {
  const std::string split = R"({"type":"Split","pattern":{"Regex":"(x+x+)+y"},"behavior":"Isolated","invert":false})";
  const std::string json = Gpt2();
  const size_t begin = json.find("\"pre_tokenizer\":") + 16;
  const size_t end = json.find("\"post_processor\"");
  const auto tokenizer = OpenJson(json.substr(0, begin) + split + "," + json.substr(end));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto tokens = (*tokenizer)->Encode(std::string(200, 'x'), AddedTokens());
  EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument) << tokens.status();
}

TEST(HostilePickle, ThatCallsAFunctionIsRefused) {
  const TemporaryFolder folder;
  const auto tokenizer = OpenTokenizer(folder.Write("tokenizer.pkl",
                                                    "\x80\x04"
                                                    "cposix\nsystem\n\x8c\x02id\x85R."));
  ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("posix.system"));
}

TEST(HostilePickle, CutAnywhereIsRefused) {
  const std::string pickle = ReadFile(Fixture("tokenizers/nanochat/tokenizer.pkl"));
  const TemporaryFolder folder;
  for (size_t size = 1; size < pickle.size(); size += 97) {
    const std::string path = folder.Write("tokenizer.pkl", pickle.substr(0, size));
    EXPECT_EQ(OpenTokenizer(path).status().code(), absl::StatusCode::kFailedPrecondition) << size;
  }
}

TEST(HostilePickle, WithoutATokenForEachByteIsRefused) {
  const std::string pickle = ReadFile(Fixture("tokenizers/nanochat/tokenizer.pkl"));
  const TemporaryFolder folder;
  // With SHORT_BINBYTES of one byte, the token `a` becomes a second `b`.
  const std::string changed = absl::StrReplaceAll(pickle, {{"C\x01"
                                                            "a",
                                                            "C\x01"
                                                            "b"}});
  ASSERT_NE(changed, pickle);
  const auto tokenizer = OpenTokenizer(folder.Write("tokenizer.pkl", changed));
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition) << tokenizer.status();
}

class HostileText : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto tokenizer = OpenTokenizer(Fixture("tokenizers/" + GetParam()));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  void ExpectAnswer(absl::string_view piece, size_t bytes) {
    std::string text;
    while (text.size() < bytes) absl::StrAppend(&text, piece);
    const auto tokens = tokenizer_->Encode(text, AddedTokens());
    if (!tokens.ok()) {
      EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument) << tokens.status();
    }
  }

  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_P(HostileText, WithoutASpaceHasAnAnswer) {
  for (const char* piece : {"a", "\n", " ", "\xe6\x97\xa5", "'", "1"}) ExpectAnswer(piece, size_t{64} << 10);
  ExpectAnswer(absl::string_view("\0", 1), size_t{64} << 10);
}

TEST_P(HostileText, ThatIsNotUtf8OrTooLongIsRefused) {
  const auto surrogate = tokenizer_->Encode("ab\xed\xa0\x80", AddedTokens());
  EXPECT_EQ(surrogate.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(surrogate.status().message()), HasSubstr("not UTF-8 from byte 2 on"));
  EXPECT_EQ(tokenizer_->Encode(std::string(kMaxTextBytes + 1, 'a'), AddedTokens()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

std::string FamilyOf(const ::testing::TestParamInfo<std::string>& info) {
  return info.param.substr(0, info.param.find('/'));
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, HostileText,
                         ::testing::Values("gpt2/tokenizer.json", "llama3/tokenizer.json", "qwen/tokenizer.json",
                                           "llama2/tokenizer.json", "gemma/tokenizer.json", "unigram/tokenizer.json",
                                           "wordpiece/tokenizer.json", "nanochat/tokenizer.pkl"),
                         FamilyOf);

// Tests one tokenizer for each algorithm, since each takes seconds.
class HugeText : public HostileText {};

TEST_P(HugeText, OfTenMegabytesWithoutASpaceHasAnAnswer) { ExpectAnswer("a", size_t{10} << 20); }

INSTANTIATE_TEST_SUITE_P(Tokenizers, HugeText,
                         ::testing::Values("gpt2/tokenizer.json", "llama2/tokenizer.json", "unigram/tokenizer.json",
                                           "nanochat/tokenizer.pkl"),
                         FamilyOf);

}  // namespace
}  // namespace hookline
