#include "server/capture/text_source.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/status.h"
#include "tests/text/temporary_folder.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Uses the demo's tokenizer, which has an id for each byte, and 256 as BOS.
class TextSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = OpenTokenizer(Fixture("nanochat/demo/tokenizer.pkl"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    info_.vocabulary_size = 257;
  }

  absl::StatusOr<TokenBatch> Encode(const TextSource& source, int64_t max_sequence_length = 100) {
    return EncodeTexts(source, *tokenizer_, info_, max_sequence_length, limits_);
  }
  std::vector<std::vector<uint32_t>> Sequences(const TextSource& source, int64_t max_sequence_length) {
    const absl::StatusOr<TokenBatch> batch = Encode(source, max_sequence_length);
    EXPECT_TRUE(batch.ok()) << batch.status();
    std::vector<std::vector<uint32_t>> sequences;
    for (int64_t i = 0; batch.ok() && i < batch->sequences(); ++i) {
      sequences.emplace_back((*batch)[i].begin(), (*batch)[i].end());
    }
    return sequences;
  }
  static void ExpectField(const absl::Status& status, const std::string& field, const std::string& why) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(FieldOf(status), field);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }

  std::unique_ptr<const Tokenizer> tokenizer_;
  ModelInfo info_;
  TokenLimits limits_{/*max_request_tokens=*/1000, /*max_request_sequences=*/10};
};

TEST_F(TextSourceTest, EachTextIsASequence) {
  EXPECT_THAT(Sequences({{"ab", "c"}, {}, LongTexts::kRefuse}, 100),
              ElementsAre(ElementsAre('a', 'b'), ElementsAre('c')));
}

TEST_F(TextSourceTest, LongTextsAreRefusedByDefaultWithBothNumbers) {
  ExpectField(Encode({{"ab", "abcde"}, {}, LongTexts::kRefuse}, 4).status(), "text.texts[1]",
              "has 5 tokens, more than the 4");
}

TEST_F(TextSourceTest, TruncatedTextsKeepWhatWasAdded) {
  EXPECT_THAT(Sequences({{"abcde"}, true, LongTexts::kTruncate}, 4), ElementsAre(ElementsAre(256, 'a', 'b', 'c')));
}

TEST_F(TextSourceTest, SplitTextsHaveWhatWasAddedInEachPart) {
  EXPECT_THAT(Sequences({{"abcde"}, true, LongTexts::kSplit}, 3),
              ElementsAre(ElementsAre(256, 'a', 'b'), ElementsAre(256, 'c', 'd'), ElementsAre(256, 'e')));
}

TEST_F(TextSourceTest, ATextWithoutATokenIsRefusedUnlessOneIsAdded) {
  ExpectField(Encode({{""}, {}, LongTexts::kSplit}).status(), "text.texts[0]", "no token");
  EXPECT_THAT(Sequences({{""}, true, LongTexts::kSplit}, 3), ElementsAre(ElementsAre(256)));
}

TEST_F(TextSourceTest, IdsThatTheModelDoesNotHaveAreRefused) {
  info_.vocabulary_size = 'c';
  ExpectField(Encode({{"ab", "abc"}, {}, LongTexts::kRefuse}).status(), "text.texts[1]", "token id 99");
  ExpectField(Encode({{"ab"}, true, LongTexts::kRefuse}).status(), "text.add_special_tokens", "token id 256");
}

TEST_F(TextSourceTest, NoTextsAreRefused) { ExpectField(Encode({}).status(), "text.texts", "is empty"); }

TEST_F(TextSourceTest, MoreTokensThanARequestMayHoldAreRefused) {
  const TextSource source{std::vector<std::string>(9, std::string(120, 'a')), {}, LongTexts::kSplit};
  EXPECT_EQ(Encode(source).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace hookline
