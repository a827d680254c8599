#include "server/capture/text_source.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/capture/token_batch.h"

namespace hookline {
namespace {

void AppendSpecial(const std::vector<SpecialToken>& tokens, TokenBatch* batch) {
  for (const SpecialToken& token : tokens) batch->Append(token.id);
}

absl::Status CheckId(uint32_t id, const std::string& field, const Tokenizer& tokenizer, const ModelInfo& info) {
  if (id < info.vocabulary_size) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("takes the token id ", id, " (`", tokenizer.table()->Text(id),
                                          "`), which is not below the model's vocabulary_size ", info.vocabulary_size));
}

absl::Status CheckAdded(const AddedTokens& added, const Tokenizer& tokenizer, const ModelInfo& info) {
  for (const auto* tokens : {&added.before, &added.after}) {
    for (const SpecialToken& token : *tokens) {
      RETURN_IF_ERROR(CheckId(token.id, "text.add_special_tokens", tokenizer, info));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AddedTokens> AddedTo(const TextSource& source, const Tokenizer& tokenizer) {
  if (!source.add_special_tokens.has_value()) return tokenizer.added_by_default();
  if (!*source.add_special_tokens) return AddedTokens();
  if (tokenizer.added().size() == 0) {
    return InvalidField(
        "text.add_special_tokens",
        "is true, but the tokenizer's files name no token to add; put it into the text, or leave it out");
  }
  return tokenizer.added();
}

absl::StatusOr<TokenBatch> EncodeTexts(const TextSource& source, const Tokenizer& tokenizer, const ModelInfo& info,
                                       int64_t max_sequence_length, const TokenLimits& limits) {
  if (source.texts.empty()) return InvalidField("text.texts", "is empty; send at least one text");
  ASSIGN_OR_RETURN(const AddedTokens added, AddedTo(source, tokenizer));
  RETURN_IF_ERROR(CheckAdded(added, tokenizer, info));
  const int64_t room = max_sequence_length - static_cast<int64_t>(added.size());
  if (room < 1) {
    return InvalidField("text.add_special_tokens",
                        absl::StrCat("adds ", added.size(), " tokens, but a sequence may have ", max_sequence_length));
  }
  TokenBatch batch;
  for (size_t i = 0; i < source.texts.size(); ++i) {
    const std::string field = absl::StrCat("text.texts[", i, "]");
    const absl::StatusOr<TokenizedText> text = tokenizer.Encode(source.texts[i], AddedTokens());
    if (!text.ok()) return InvalidField(field, text.status().message());
    absl::Span<const uint32_t> ids = text->ids;
    if (ids.empty() && added.size() == 0) return InvalidField(field, "has no token; leave empty texts out");
    for (const uint32_t id : ids) RETURN_IF_ERROR(CheckId(id, field, tokenizer, info));
    if (static_cast<int64_t>(ids.size()) > room && source.long_texts == LongTexts::kRefuse) {
      return InvalidField(
          field, absl::StrCat("has ", ids.size() + added.size(), " tokens, more than the ", max_sequence_length,
                              " that a sequence may have; set `long_texts` to truncate or split it"));
    }
    if (source.long_texts == LongTexts::kTruncate) ids = ids.first(std::min(ids.size(), static_cast<size_t>(room)));
    do {
      const size_t count = std::min(ids.size(), static_cast<size_t>(room));
      AppendSpecial(added.before, &batch);
      for (const uint32_t id : ids.first(count)) batch.Append(id);
      AppendSpecial(added.after, &batch);
      batch.EndSequence();
      ids.remove_prefix(count);
    } while (!ids.empty());
    RETURN_IF_ERROR(CheckTokenCounts(batch.sequences(), batch.tokens(), "text", limits));
  }
  return batch;
}

}  // namespace hookline
