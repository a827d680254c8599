// A flow: sequences that wait for forward passes, and the captures that receive their rows. A capture has a flow of its
// own; a feed's members share one.
#ifndef HOOKLINE_SERVER_ENGINE_FLOW_H_
#define HOOKLINE_SERVER_ENGINE_FLOW_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "server/capture/request.h"
#include "server/capture/sequence_source.h"
#include "server/engine/client_share.h"
#include "server/engine/ids.h"

namespace hookline {

struct Flow {
  Flow(FlowId flow_id, ModelId model_id, const CapturePlan& plan)
      : id(flow_id), model(model_id), source(plan), deterministic(plan.deterministic), feed(plan.feed) {}

  const FlowId id;
  const ModelId model;
  SequenceSource source;
  const bool deterministic;

  // The share of the client that pays for the flow; for a feed, that of its first member.
  std::shared_ptr<ClientShare> share = std::make_shared<ClientShare>();

  // Admitted captures that still want rows.
  std::vector<CaptureId> receivers;
  // The rows of its last batch are being planned. Those of the next one begin where they end, so it is not formed yet.
  bool is_planning = false;
  // Tokens that the flow may still put into batches before it is its client's other flows' turn.
  int64_t deficit = 0;
  // Tokens that the flow may put into the next batch, so that their rows find room. A single sequence that is alone on
  // its device may exceed them.
  int64_t most_tokens = std::numeric_limits<int64_t>::max();
  // The room that its receivers have for rows, in tokens, if no rows wait on the device. It is kept, because looking at
  // each receiver's window for every batch would take longer than everything else.
  struct Room {
    bool is_known = false;
    bool is_there = false;
    int64_t tokens = 0;
  };
  Room room;

  // These are valid only while a batch is formed.
  bool is_ready = false;
  bool is_in_batch = false;
  int64_t batch_tokens = 0;

  // The time since which a sequence has waited while every receiver had room.
  absl::Time ready_since = absl::InfiniteFuture();

  // The request of the first member, if the flow is a feed's.
  const std::optional<FeedSource> feed;
  // Members of a feed that has not started; it starts when it has enough of them. They hold no slabs.
  std::vector<CaptureId> waiting_members;
  bool started = !feed.has_value();
  // The time since which some, but not all, receivers of a feed have had no room.
  absl::Time stalled_since = absl::InfiniteFuture();
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_FLOW_H_
