#include "server/capture/token_batch.h"

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::Status CheckTokenCounts(int64_t sequences, int64_t tokens, absl::string_view field, const TokenLimits& limits) {
  const auto too_many = [&](int64_t count, absl::string_view what, int64_t most, absl::string_view flag) {
    return absl::ResourceExhaustedError(
        absl::StrCat(field, ": ", count, " ", what, " in one message are more than the ", most,
                     " that the server takes (", flag, "); send them in several, by CaptureStream"));
  };
  if (tokens > limits.max_request_tokens) {
    return too_many(tokens, "tokens", limits.max_request_tokens, "--max-request-tokens");
  }
  if (sequences > limits.max_request_sequences) {
    return too_many(sequences, "sequences", limits.max_request_sequences, "--max-request-sequences");
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const TokenBatch& tokens, absl::string_view field, int64_t first_sequence,
                         const ModelInfo& info, const CaptureLimits& limits) {
  if (tokens.empty()) {
    return InvalidField(absl::StrCat(field, ".sequences"), "is empty; send at least one sequence");
  }
  RETURN_IF_ERROR(CheckTokenCounts(tokens.sequences(), tokens.tokens(), field, limits.tokens));
  for (int64_t i = 0; i < tokens.sequences(); ++i) {
    const absl::Span<const uint32_t> ids = tokens[i];
    const int64_t index = first_sequence + i;
    const auto name = [&] { return absl::StrCat(field, ".sequences[", index, "].ids"); };
    if (ids.empty()) return InvalidField(name(), "is empty; a sequence has at least one token");
    if (static_cast<int64_t>(ids.size()) > limits.max_sequence_length) {
      return InvalidField(name(),
                          absl::StrCat(ids.size(), " tokens are more than the ", limits.max_sequence_length,
                                       " that a sequence may have (the model's context is ", info.context_length, ")"));
    }
    const uint32_t vocabulary = static_cast<uint32_t>(info.vocabulary_size);
    for (size_t t = 0; t < ids.size(); ++t) {
      if (ids[t] >= vocabulary) {
        return InvalidField(absl::StrCat(name(), "[", t, "]"),
                            absl::StrCat("token id ", ids[t], " in sequence ", index, " at position ", t,
                                         " is not below the vocabulary's size ", vocabulary));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline
