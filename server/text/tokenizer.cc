#include "server/text/tokenizer.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/text/library.h"

namespace hookline {

const AddedTokens Tokenizer::kNone;

void Tokenizer::Free::operator()(hookline_tokenizer* tokenizer) const { hookline_tokenizer_free(tokenizer); }

std::vector<SpecialToken> Tokenizer::special_tokens(size_t most) const {
  std::vector<SpecialToken> tokens;
  std::set<uint32_t> listed;
  for (const auto& [role, spelling] : facts_.roles) {
    for (uint32_t id = 0; id < table_->size(); ++id) {
      if ((*table_)[id] != spelling) continue;
      tokens.push_back({role, id, spelling});
      listed.insert(id);
      break;
    }
  }
  for (uint32_t id = 0; id < table_->size() && tokens.size() < most; ++id) {
    if (table_->is_special(id) && listed.count(id) == 0) tokens.push_back({"", id, std::string((*table_)[id])});
  }
  return tokens;
}

absl::StatusOr<TokenizedText> Tokenizer::Encode(absl::string_view text, const AddedTokens& added) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", text.size(), " bytes; at most ", kMaxTextBytes, " are encoded"));
  }
  ASSIGN_OR_RETURN(TokenizedText tokens, EncodeWith(library_.get(), text, /*add_special_tokens=*/false));
  const auto insert = [&tokens](bool at_end, const std::vector<SpecialToken>& special) {
    std::vector<uint32_t> ids;
    for (const SpecialToken& token : special) ids.push_back(token.id);
    tokens.ids.insert(at_end ? tokens.ids.end() : tokens.ids.begin(), ids.begin(), ids.end());
    tokens.begins.insert(at_end ? tokens.begins.end() : tokens.begins.begin(), ids.size(), 0);
    tokens.ends.insert(at_end ? tokens.ends.end() : tokens.ends.begin(), ids.size(), 0);
  };
  insert(/*at_end=*/false, added.before);
  insert(/*at_end=*/true, added.after);
  return tokens;
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const uint32_t> ids, bool skip_special_tokens) const {
  hookline_buffer text{};
  hookline_buffer error{};
  if (!hookline_tokenizer_decode(library_.get(), ids.data(), ids.size(), skip_special_tokens, &text, &error)) {
    return absl::InvalidArgumentError(TakeError(error));
  }
  return TakeText(text);
}

}  // namespace hookline
