// Resume tokens: the position of a capture, as its client keeps it.
//
// Encoding, opaque to clients: one byte of version; three digests of 8 bytes (model, source, request); the numbers of
// ResumePosition as varints (LEB128, like Protobuf's), in their order; the XXH32 of all that, little-endian.
#ifndef HOOKLINE_SERVER_CAPTURE_RESUME_TOKEN_H_
#define HOOKLINE_SERVER_CAPTURE_RESUME_TOKEN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// The model, source and request that a token belongs to.
struct CaptureDigests {
  uint64_t model = 0;    // weights
  uint64_t source = 0;   // the dataset with its tokens and cut, or the fact that the client sends the sequences
  uint64_t request = 0;  // everything else that decides what the rows are
};

// A place in a capture: between two chunks.
struct ResumePosition {
  int64_t rows = 0;           // of complete row groups
  int64_t sequence = 0;       // the one that row `rows` comes from
  int64_t sequence_rows = 0;  // selected rows of that sequence that came before
  // The row group that begins there: its number of rows, and for how many of the capture's hook points, in their order,
  // the chunk was sent. Zero between two groups.
  int64_t group_rows = 0;
  int64_t group_hook_points = 0;
  // Deterministic captures: the first sequence of the batch that `sequence` belongs to, and the sequences in a batch.
  // Otherwise batch_sequence == sequence and batch_sequences is 0.
  int64_t batch_sequence = 0;
  int64_t batch_sequences = 0;
};

std::string EncodeResumeToken(const CaptureDigests& digests, const ResumePosition& position);

// Returns INVALID_ARGUMENT, for the field `resume_token`, if the token has another version, is damaged, or belongs to
// another model, source or request; the message says which. `hook_points` bounds group_hook_points.
absl::StatusOr<ResumePosition> DecodeResumeToken(absl::string_view token, const CaptureDigests& digests,
                                                 int hook_points);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_RESUME_TOKEN_H_
