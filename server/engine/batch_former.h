// Chooses the sequences of the next forward pass.
#ifndef HOOKLINE_SERVER_ENGINE_BATCH_FORMER_H_
#define HOOKLINE_SERVER_ENGINE_BATCH_FORMER_H_

#include <cstdint>
#include <vector>

#include "server/engine/flow.h"

namespace hookline {

// A sequence in a batch. The numbers are those that ResumePosition has for the batch with which a resume would begin:
// `batch_...` for a resume before this sequence, `next_batch_...` for one after it.
struct BatchItem {
  FlowId flow = kNoFlow;
  bool deterministic = false;  // the batch holds this flow's sequences alone, and its shape affects its rows' values
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

// Takes sequences from `flows`, which are in the order of their turn and each have one, until no more fit. Tokens are
// shared fairly, first between clients by their weights and then between the flows of each client: hierarchical deficit
// round robin (Shreedhar, Varghese: Efficient fair queuing using deficit round robin, 1996), with the difference that a
// flow may overdraw by its last sequence, so that a sequence longer than its share is not stuck. `ready` holds all
// flows that could run, including `flows`: their clients earn their shares of this batch, whether or not it takes their
// sequences. The first flow in turn with credit gives the first sequence; then come the sequences whose lengths are
// nearest to the longest so far, because shorter ones are padded. A deterministic flow goes alone, with the batch that
// its source fixes.
std::vector<BatchItem> FormBatch(const std::vector<Flow*>& flows, const std::vector<Flow*>& ready,
                                 const BatchLimits& limits);

// Returns the small flows: those that have at most 1/32 of a batch left and whose clients have not overdrawn their
// share. Returns none unless the other flows fill a batch by themselves. A forward pass over small flows alone hardly
// delays the full batches around it, so their sequences need not wait for a full batch, nor be padded to its length.
std::vector<Flow*> SmallFlows(const std::vector<Flow*>& flows, const BatchLimits& limits);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_BATCH_FORMER_H_
