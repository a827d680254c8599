// A batch on its way through a device: what the scheduler hands to an executor, which plans its rows and then runs it.
#ifndef HOOKLINE_SERVER_ENGINE_BATCH_H_
#define HOOKLINE_SERVER_ENGINE_BATCH_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "server/base/slab_pool.h"
#include "server/capture/plan.h"
#include "server/capture/resume_token.h"
#include "server/engine/batch_former.h"
#include "server/engine/event_queue.h"
#include "server/engine/ids.h"
#include "server/engine/pause_room.h"

namespace hookline {

class DeviceRun;
struct Rerun;

// The part of a capture that the executor and the copier may use: every member is immutable or thread-safe. Destroying
// it may call the scheduler, so never destroy one with the scheduler's mutex held.
struct Recipient {
  CaptureId capture{};
  std::shared_ptr<const CapturePlan> plan;
  std::shared_ptr<SlabWindow> window;
  std::shared_ptr<EventQueue> events;
};

// The position up to which a capture's rows have been planned.
struct RowCursor {
  int64_t next_row = 0;       // the next row to plan, counted from the capture's start
  ResumePosition skip_until;  // rows before this position are not sent: they precede a resume, or a member's
                              // entry into its feed
};

struct Batch {
  // A capture that receives rows of the batch.
  struct Member {
    Recipient recipient;
    FlowId flow = kNoFlow;
    int64_t turn = 0;  // the batch's turn among those of its capture
    RowCursor cursor;  // the executor moves it on until it calls Planned
    // Rows of an earlier batch have no slabs yet, so the rows of this one must not take any.
    bool has_unplaced = false;

    // The executor sets the following two when it has planned the rows.
    bool has_rows = false;
    // The bytes of rows that stay on the device until the capture's window has slabs for the last of them; 0: all
    // have slabs.
    int64_t staged_bytes = 0;
  };
  std::vector<BatchItem> items;
  std::vector<Member> members;
  // If set, the batch has no items: it is the next forward pass of a scoring.
  std::shared_ptr<DeviceRun> score;
  CaptureId score_id{};
  std::unique_ptr<PauseRoom> score_room;  // null: the pass does not pause, or has room already
  // If set, the batch is one that another executor has planned and could not finish.
  std::shared_ptr<Rerun> rerun;
};

// One forward pass that was launched, as the scheduler accounts for it.
struct LaunchedPass {
  struct Share {  // what one capture has of the pass
    CaptureId capture{};
    int64_t sequences = 0;
    int64_t tokens = 0;
    absl::Duration copy_time;
  };
  std::vector<Share> shares;
  int64_t tokens = 0;     // padding not counted
  int64_t positions = 0;  // padding counted
};

// A batch that the device has computed.
struct ComputedBatch {
  std::vector<CaptureId> captures;
  absl::Duration forward_time;
  int64_t tokens = 0;
  int layers = 1;  // blocks that it ran, at least 1
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_BATCH_H_
