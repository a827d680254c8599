// A tokenizer: texts to token ids and back.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<const Tokenizer> tokenizer, OpenTokenizer("checkpoints/d20/tokenizer.pkl"));
//   ASSIGN_OR_RETURN(const TokenizedText tokens, tokenizer->Encode("The cat sat", tokenizer->added_by_default()));
//   (*tokenizer->table())[tokens.ids[0]];
#ifndef HOOKLINE_SERVER_TEXT_TOKENIZER_H_
#define HOOKLINE_SERVER_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/text/token_table.h"

struct hookline_tokenizer;

namespace hookline {

// Encoding a text of this size takes seconds, and about forty times its size in memory.
constexpr size_t kMaxTextBytes = size_t{16} << 20;

struct SpecialToken {
  std::string role;  // "bos", "eos", "pad", "unk"; empty: none is known
  uint32_t id = 0;
  std::string token;
};

// Special tokens put before and after the tokens of a text.
struct AddedTokens {
  std::vector<SpecialToken> before;
  std::vector<SpecialToken> after;

  size_t size() const { return before.size() + after.size(); }
};

// Token ids, and for each the characters of the text that it covers: [begins, ends). Added tokens cover none.
struct TokenizedText {
  std::vector<uint32_t> ids;
  std::vector<uint32_t> begins;
  std::vector<uint32_t> ends;
};

// Immutable, and therefore thread-safe.
class Tokenizer {
 public:
  // The Rust library's tokenizer, freed with its owner.
  struct Free {
    void operator()(hookline_tokenizer* tokenizer) const;
  };
  using Library = std::unique_ptr<hookline_tokenizer, Free>;

  // The facts that a tokenizer's files state besides the tokenizer itself.
  struct Facts {
    std::string description;  // one line for people
    std::string fingerprint;  // XXH3-128 of the tokenizer's file, 32 hexadecimal digits
    // Spellings by role.
    std::vector<std::pair<std::string, std::string>> roles;
    // The special tokens that can be added to a text, and whether they are added where a request does not say.
    AddedTokens added;
    bool adds_by_default = false;
  };

  Tokenizer(Library library, std::shared_ptr<const TokenTable> table, Facts facts)
      : library_(std::move(library)), table_(std::move(table)), facts_(std::move(facts)) {}

  // Returns the spellings of all tokens.
  const std::shared_ptr<const TokenTable>& table() const { return table_; }
  const std::string& description() const { return facts_.description; }
  const std::string& fingerprint() const { return facts_.fingerprint; }

  // Return the tokens that are added where a request asks for special tokens, and where it does not say.
  const AddedTokens& added() const { return facts_.added; }
  const AddedTokens& added_by_default() const { return facts_.adds_by_default ? facts_.added : kNone; }

  // Returns the special tokens: those with a role first, then others in the order of their ids, up to `most` in all.
  std::vector<SpecialToken> special_tokens(size_t most) const;

  // Encodes a text of UTF-8 and puts `added` around it. INVALID_ARGUMENT, with a sentence that does not name a field:
  // the text is longer than kMaxTextBytes or not UTF-8, or the tokenizer gives up on it, in bounded time.
  absl::StatusOr<TokenizedText> Encode(absl::string_view text, const AddedTokens& added) const;

  // Returns UTF-8, whatever the tokens hold. Ids without a token are left out.
  absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids, bool skip_special_tokens) const;

 private:
  static const AddedTokens kNone;

  const Library library_;
  const std::shared_ptr<const TokenTable> table_;
  const Facts facts_;
};

// Opens a tokenizer.json, with the tokenizer_config.json and special_tokens_map.json beside it, if they exist, or
// nanochat's tokenizer.pkl. FAILED_PRECONDITION, naming the file: it is not a tokenizer that can be used; NOT_FOUND.
absl::StatusOr<std::unique_ptr<const Tokenizer>> OpenTokenizer(const std::string& path);

// Returns the places where a tokenizer is looked for beside the checkpoint at `path`, a directory or a file, in this
// order: its tokenizer.json, its tokenizer.pkl, and the tokenizer.pkl that nanochat keeps for all its checkpoints.
std::vector<std::string> TokenizerPlaces(const std::string& path);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_TEXT_TOKENIZER_H_
