// Chooses the sequences of the next forward pass.
#ifndef HOOKLINE_SERVER_ENGINE_BATCH_FORMER_H_
#define HOOKLINE_SERVER_ENGINE_BATCH_FORMER_H_

#include <cstdint>
#include <vector>

#include "server/engine/flow.h"

namespace hookline {

// A sequence in a batch. The numbers are ResumePosition's of the batch that a resume would begin with: one before this
// sequence, and one after it.
struct BatchItem {
  FlowId flow = kNoFlow;
  bool deterministic = false;  // the batch holds this flow's sequences alone, and its shape is part of its rows
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

// Takes sequences from `flows` (each has one; in the order of their turn) until no more fit. Fair by tokens, between
// clients by their weights first and between a client's flows second: hierarchical deficit round robin (Shreedhar,
// Varghese: Efficient fair queuing using deficit round robin, 1996), with the difference that a flow may overdraw by
// its last sequence, so that a sequence longer than its share is not stuck. `ready` are all flows that could run,
// `flows` among them: their clients earn their shares of this batch, whether or not it is theirs. The first flow in
// turn with credit gives the first sequence; after it come those whose lengths are nearest to the longest one so far,
// because what is shorter is padded. A deterministic flow goes alone, with the batch that its source fixes.
std::vector<BatchItem> FormBatch(const std::vector<Flow*>& flows, const std::vector<Flow*>& ready,
                                 const BatchLimits& limits);

// The flows whose whole rest is less than 1/32 of a batch, and whose clients have not had more than their share, where
// the others fill batches by themselves; otherwise none.
// Their own forward pass hardly delays the full batches around it, so they need not wait for one of those, nor be
// padded to its length.
std::vector<Flow*> SmallFlows(const std::vector<Flow*>& flows, const BatchLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_BATCH_FORMER_H_
