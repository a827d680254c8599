// Checks of the sequences that clients send.
#ifndef HOOKLINE_SERVER_CAPTURE_TOKEN_BATCH_H_
#define HOOKLINE_SERVER_CAPTURE_TOKEN_BATCH_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/capture/limits.h"
#include "server/capture/request.h"
#include "server/model/model.h"

namespace hookline {

// Returns RESOURCE_EXHAUSTED, with both numbers, for more sequences or tokens than one message may hold. `field` is the
// proto path of the TokenBatch.
absl::Status CheckTokenCounts(int64_t sequences, int64_t tokens, absl::string_view field, const TokenLimits& limits);

// Returns OK if there is a sequence, none is empty or too long, every id is below the vocabulary's size, and
// CheckTokenCounts passes. Errors: INVALID_ARGUMENT naming the field, RESOURCE_EXHAUSTED with both numbers.
// `first_sequence` is the index of the first sequence among all that the client streams; errors count from there,
// because a client does not know how its messages were cut.
absl::Status CheckTokens(const TokenBatch& tokens, absl::string_view field, int64_t first_sequence,
                         const ModelInfo& info, const CaptureLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_TOKEN_BATCH_H_
