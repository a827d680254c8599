// Turns texts into token sequences.
#ifndef HOOKLINE_SERVER_CAPTURE_TEXT_SOURCE_H_
#define HOOKLINE_SERVER_CAPTURE_TEXT_SOURCE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "server/capture/limits.h"
#include "server/capture/request.h"
#include "server/model/model.h"
#include "server/text/tokenizer.h"

namespace hookline {

// The special tokens that `source` adds to each text. INVALID_ARGUMENT, field `text.add_special_tokens`: it asks for
// some and the tokenizer names none.
absl::StatusOr<AddedTokens> AddedTo(const TextSource& source, const Tokenizer& tokenizer);

// The sequences of `source`: one for each text, or several where it splits. INVALID_ARGUMENT names the text: it has no
// token, more tokens than `max_sequence_length` where it refuses those, an id that the model does not have, or is not
// one that the tokenizer encodes. RESOURCE_EXHAUSTED as CheckTokenCounts.
absl::StatusOr<TokenBatch> EncodeTexts(const TextSource& source, const Tokenizer& tokenizer, const ModelInfo& info,
                                       int64_t max_sequence_length, const TokenLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_TEXT_SOURCE_H_
