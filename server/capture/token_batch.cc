#include "server/capture/token_batch.h"

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::Status CheckTokens(const TokenBatch& tokens, absl::string_view field, const ModelInfo& info,
                         const CaptureLimits& limits) {
  if (tokens.sequences.empty()) {
    return InvalidField(absl::StrCat(field, ".sequences"), "is empty; send at least one sequence");
  }
  int64_t total = 0;
  for (size_t i = 0; i < tokens.sequences.size(); ++i) {
    const std::vector<uint32_t>& ids = tokens.sequences[i];
    const auto name = [&] { return absl::StrCat(field, ".sequences[", i, "].ids"); };
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
                            absl::StrCat("token id ", ids[t], " in sequence ", i, " at position ", t,
                                         " is not below the vocabulary's size ", vocabulary));
      }
    }
    total += static_cast<int64_t>(ids.size());
  }
  if (total > limits.max_request_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(field, ": ", total, " tokens in one message are more than the ",
                                                     limits.max_request_tokens,
                                                     " that the server takes (--max-request-tokens); send them in "
                                                     "several, by CaptureStream"));
  }
  return absl::OkStatus();
}

}  // namespace hookline
