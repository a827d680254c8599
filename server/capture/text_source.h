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

// Returns the special tokens that `source` adds to each text. INVALID_ARGUMENT, for the field
// `text.add_special_tokens`: `source` asks for some and the tokenizer names none.
absl::StatusOr<AddedTokens> AddedTo(const TextSource& source, const Tokenizer& tokenizer);

// Returns the sequences of `source`: one for each text, or several if it splits long texts. INVALID_ARGUMENT names a
// text that has no token, has more tokens than `max_sequence_length` if `source` refuses those, has an id that the
// model does not have, or cannot be encoded. RESOURCE_EXHAUSTED as in CheckTokenCounts.
absl::StatusOr<TokenBatch> EncodeTexts(const TextSource& source, const Tokenizer& tokenizer, const ModelInfo& info,
                                       int64_t max_sequence_length, const TokenLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_TEXT_SOURCE_H_
