// Chooses the sequences of the next forward pass.
#ifndef HOOKLINE_SERVER_CAPTURE_BATCH_FORMER_H_
#define HOOKLINE_SERVER_CAPTURE_BATCH_FORMER_H_

#include <cstdint>
#include <vector>

#include "server/capture/lane.h"

namespace hookline {

// A sequence in a batch, and for deterministic lanes the place of its lane's batch, as ResumePosition has it: before
// this sequence, and after it.
struct BatchItem {
  Lane* lane = nullptr;
  Sequence sequence;
  int64_t batch_sequence = 0;
  int64_t batch_sequences = 0;
  int64_t next_batch_sequence = 0;
  int64_t next_batch_sequences = 0;
};

struct BatchLimits {
  int64_t max_tokens = 0;  // positions, padding included; a longer sequence goes alone
  bool mixes_lengths = true;
};

// Takes sequences from `lanes` (each has one; in the order of their turn) until no more fit. Fair between lanes by
// tokens: deficit round robin (Shreedhar, Varghese: Efficient fair queuing using deficit round robin, 1996), with the
// difference that a lane may overdraw by its last sequence, so that a sequence longer than its share is not stuck. The
// first lane in turn with credit gives the first sequence; after it come those whose lengths are nearest to the longest
// one so far, because what is shorter is padded. A deterministic lane goes alone, with the batch that its source fixes.
std::vector<BatchItem> FormBatch(const std::vector<Lane*>& lanes, const BatchLimits& limits);

// The lanes whose whole rest is a small part of a batch, where the others fill batches by themselves; otherwise none. A
// forward pass of their own is short, so they need not wait for a full one, nor be padded to its length.
std::vector<Lane*> SmallLanes(const std::vector<Lane*>& lanes, const BatchLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_BATCH_FORMER_H_
