// A delivery: the rows of one capture from one batch, cut into row groups, on their way from the device to the sink.
#ifndef HOOKLINE_SERVER_CAPTURE_DELIVERY_H_
#define HOOKLINE_SERVER_CAPTURE_DELIVERY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "server/base/slab_pool.h"
#include "server/capture/batch_former.h"
#include "server/capture/event_queue.h"
#include "server/capture/running_capture.h"
#include "server/model/transfer.h"

namespace hookline {

struct Delivery {
  // Where a row comes from.
  struct Origin {
    int64_t sequence = 0;
    int32_t position = 0;
    uint32_t token_id = 0;
    int64_t rank = 0;  // selected rows of its sequence before it
    size_t item = 0;   // into the batch
  };
  struct PlacedChunk {
    int hook_point = 0;
    int64_t first = 0;  // into `origins`
    int64_t rows = 0;
    std::vector<SlabSpan> spans;  // cut between rows
  };
  struct Group {
    int64_t first = 0;  // into `origins`
    int64_t rows = 0;
    std::vector<PlacedChunk> chunks;  // spans are empty until the group is placed
  };

  std::shared_ptr<RunningCapture> capture;
  int64_t first_row = 0;  // number of the first row, from the capture's start
  std::vector<Origin> origins;
  std::vector<Group> groups;
  std::vector<ResumePosition> positions;  // before each group
  ResumePosition end;                     // after the last row

  // What the forward pass left, per hook point of the capture; row i is origins[i]'s. Null where none is wanted.
  std::vector<std::shared_ptr<StagedRows>> staged;
  size_t placed = 0;  // groups that have slabs
  size_t queued = 0;  // groups that the sink can see
  SlabRef open_slab;  // the next chunk goes on in it
  int64_t open_slab_used = 0;

  int64_t rows() const { return static_cast<int64_t>(origins.size()); }
  // Bytes of the groups that have no slabs yet.
  int64_t UnplacedBytes() const;
};

// Plans the rows that `capture` gets of those `items` that are of `lane`, from capture.next_row on: selects them,
// leaves out what was sent before a resume, ends at the largest budget, cuts row groups. Null if there are none. Moves
// capture.next_row on. The lane's items must follow each other in its source. On the executor's thread.
std::unique_ptr<Delivery> PlanDelivery(const std::shared_ptr<RunningCapture>& capture, const Lane* lane,
                                       absl::Span<const BatchItem> items);

// Gives the next groups slabs, as many as the capture's window has room for. Returns how many.
size_t PlaceGroups(Delivery& delivery, int64_t slab_bytes);

// Whether the next group could be placed now.
bool NextGroupFits(const Delivery& delivery, int64_t slab_bytes);

// The chunks of placed group `group`, once their slabs are filled, with statistics.
std::vector<QueuedChunk> MakeChunks(const Delivery& delivery, size_t group);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_DELIVERY_H_
