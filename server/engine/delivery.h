// A delivery: the rows of one capture from one batch, cut into row groups, on their way from the device to the sink.
// The executor plans it, runs the forward passes over the batch and starts the copies; the copier hands it on, group by
// group.
#ifndef HOOKLINE_SERVER_ENGINE_DELIVERY_H_
#define HOOKLINE_SERVER_ENGINE_DELIVERY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/base/row_layout.h"
#include "server/base/slab_pool.h"
#include "server/capture/row_packing.h"
#include "server/engine/batch.h"
#include "server/engine/batch_former.h"
#include "server/engine/event_queue.h"
#include "server/engine/row_statistics.h"
#include "server/model/transfer.h"

namespace hookline {

// Thread-compatible. A delivery belongs to the executor until it is handed to the copier.
class Delivery {
 public:
  // The origin of a row.
  struct Origin {
    int64_t count = 0;     // Sequence::count of its sequence
    int64_t sequence = 0;  // Sequence::index of its sequence
    int32_t position = 0;
    uint32_t token_id = 0;
    int64_t rank = 0;  // selected rows of its sequence before it
    size_t item = 0;   // index into the batch
  };

  using Items = std::shared_ptr<const std::vector<BatchItem>>;

  // Plans the rows of `member` from its cursor on, out of the `items` of its flow: selects them, leaves out those that
  // were sent before, stops at the largest budget, and cuts them into row groups. Returns null if no rows are left.
  // Moves the cursor on. The flow's items must follow each other in its source.
  static std::unique_ptr<Delivery> Plan(Batch::Member* member, Items items);

  const Recipient& recipient() const { return recipient_; }
  int64_t turn() const { return turn_; }
  const std::vector<BatchItem>& items() const { return *items_; }
  // Ordered by item.
  const std::vector<Origin>& origins() const { return origins_; }
  int64_t first_row() const { return first_row_; }

  // Returns how many of the rows, from the first, hook point `hook_point` of the capture takes.
  int64_t RowsOf(int hook_point) const;
  // Returns how many of the rows belong to items before `item`.
  int64_t RowsBefore(size_t item) const;

  // The bytes of the delivery that the scheduler counts as waiting on the device.
  int64_t staged_bytes() const { return staged_bytes_; }
  void set_staged_bytes(int64_t bytes) { staged_bytes_ = bytes; }

  // Gives slabs to the next groups, as far as the capture's window has room.
  void AssignSlabs();
  bool NextGroupFits() const;
  bool all_placed() const { return placed_ == groups_.size(); }
  // Bytes of the groups that have no slabs yet.
  int64_t UnplacedBytes() const;
  // Bytes of all groups.
  int64_t Bytes() const;

  // Takes `count` rows of hook point `hook_point` of the capture from a forward pass; row i belongs to origins()[first
  // + i], and the rows before them were taken from earlier passes. Starts the copies of groups that have slabs.
  absl::Status Stage(int hook_point, int64_t first, int64_t count, std::shared_ptr<StagedRows> rows,
                     Transfer* transfer);
  // Records that every hook point has the rows before `rows`.
  void SetComplete(int64_t rows) { complete_ = rows; }
  // Forgets rows from `first` on, whose pass has failed or whose device is lost, so that they can be staged again.
  // Their copies must have ended.
  void Unstage(int64_t first);
  // Leaves out the rows from `end` on, which cannot be computed. Those before it are still handed over.
  void EndAt(int64_t end);
  // Releases rows on the device that have been copied. Before the call, wait for an event that was recorded after
  // the copies.
  void DropCopied();
  // Calls AssignSlabs and starts the copies of the groups that got slabs.
  absl::Status CopyMore(Transfer* transfer);

  // Returns whether a group that is complete and has slabs has not been taken.
  bool HasGroup() const { return queued_ < placed_ && groups_[queued_].first + groups_[queued_].rows <= complete_; }
  // Takes the chunks of the next such group, with statistics. Its copies must have ended.
  std::vector<QueuedChunk> TakeGroup();
  // Returns whether every row that was planned has been taken.
  bool all_taken() const { return !is_cut_ && queued_ == groups_.size(); }

  // This time goes to the capture's account.
  void AddCopyTime(absl::Duration duration) { copy_time_ += duration; }
  absl::Duration copy_time() const { return copy_time_; }

 private:
  struct PlacedChunk {
    int hook_point = 0;
    int64_t first = 0;  // index into origins_
    int64_t rows = 0;
    std::vector<SlabSpan> spans;  // cut between rows
  };
  struct Group {
    int64_t first = 0;  // index into origins_
    int64_t rows = 0;
    ResumePosition position;          // before its first row
    std::vector<PlacedChunk> chunks;  // spans are empty until the group has slabs
  };

  // The rows of a hook point from one forward pass.
  struct Piece {
    int64_t first = 0, end = 0;        // indices into origins_
    std::shared_ptr<StagedRows> rows;  // null once all were copied
    ConversionLoss loss;               // of the rows that were copied and released
  };

  Delivery(const Recipient& recipient, int64_t turn, Items items);

  int64_t rows() const { return static_cast<int64_t>(origins_.size()); }
  int64_t RowBytes(const PlacedChunk& chunk) const { return recipient_.plan->hook_points[chunk.hook_point].row_bytes; }
  void SelectRows(const Batch::Member& member);
  void CutGroups(int64_t first, int64_t rows);
  ResumePosition PositionBefore(int64_t row) const;
  absl::Status StartCopies(int hook_point, const Piece& piece, size_t first_group, Transfer* transfer);
  void AddStatistics(const PlacedChunk& placed, const RowLayout& layout, RowStatistics* statistics) const;
  ResumePosition PositionAfter(size_t group, const PlacedChunk& chunk) const;
  std::shared_ptr<const Provenance> ProvenanceOf(const Group& group) const;

  const Recipient recipient_;
  const int64_t turn_;
  const Items items_;
  int64_t first_row_ = 0;  // number of the first row, from the capture's start
  std::vector<Origin> origins_;
  std::vector<Group> groups_;
  ResumePosition end_;   // after the last row
  bool is_cut_ = false;  // EndAt has left out rows

  std::vector<std::vector<Piece>> staged_;  // per hook point of the capture, in the order of their rows
  int64_t complete_ = 0;                    // rows, from the first, that every hook point has
  size_t placed_ = 0;                       // groups that have slabs
  size_t queued_ = 0;                       // groups that were taken
  int64_t staged_bytes_ = 0;
  absl::Duration copy_time_;
  RowPacking packing_;
  SlabRef open_slab_;  // the next chunk continues in it
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_DELIVERY_H_
