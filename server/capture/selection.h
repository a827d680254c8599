// Decides which rows of a sequence a selection keeps.
#ifndef HOOKLINE_SERVER_CAPTURE_SELECTION_H_
#define HOOKLINE_SERVER_CAPTURE_SELECTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/capture/request.h"

namespace hookline {

// Returns `selection` in the form that the functions below take: the stride is at least 1, the excluded ids are sorted
// and unique. INVALID_ARGUMENT, naming the proto field: the selection keeps nothing, contradicts itself or is too long.
absl::StatusOr<Selection> NormalizeSelection(Selection selection, int64_t vocabulary_size, int64_t max_sequence_length);

// Appends to `positions` the positions of sequence `sequence` that `selection` keeps, ascending. The result depends on
// the arguments alone. `selection` is normalized.
//
// Sampling keeps the `sample_rows` positions whose key is smallest (ties by position), where key = mix(mix(mix(seed) +
// sequence) + position) in 64-bit arithmetic and mix is the output function of splitmix64 (Steele, Lea, Flood: Fast
// splittable pseudorandom number generators, 2014).
void SelectPositions(const Selection& selection, int64_t sequence, absl::Span<const uint32_t> ids,
                     std::vector<int32_t>* positions);

// Returns how many positions of a sequence of `length` tokens are kept if none is left out because of its token id.
int64_t SelectedPositions(const Selection& selection, int64_t length);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_SELECTION_H_
