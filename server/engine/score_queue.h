// The scorings, and other work of clients beside captures (device_run.h), that wait for one model's device, and whose
// turn it is.
#ifndef HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_
#define HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "server/engine/ids.h"

namespace hookline {

class DeviceRun;

// Passes that may pause for their clients need room on the device. They get it in the order of their turns: one that
// has to wait for it is not overtaken by others of that kind.
//
// Fair by tokens: among scorings the one that has run the fewest goes first, and each gets as many as each flow of
// captures that could run at the same time. Not thread-safe; the scheduler's mutex guards it.
class ScoreQueue {
 public:
  // `max_paused`: positions for which there is room.
  explicit ScoreQueue(int64_t max_paused) : free_room_(max_paused) {}

  void Add(CaptureId id, std::shared_ptr<DeviceRun> run);
  // Returns what was added, whose destruction may call the scheduler; null if there is none.
  std::shared_ptr<DeviceRun> Remove(CaptureId id);
  // Sets over how many positions the scoring's next forward pass runs, and for how many it needs room to pause.
  void SetWaiting(CaptureId id, int64_t positions, int64_t paused);

  // The scoring whose turn it is beside `flows` flows that could run; null: it is theirs.
  struct Turn {
    CaptureId id{};
    std::shared_ptr<DeviceRun> run;
    int64_t positions = 0;  // of its pass
    int64_t paused = 0;     // room that it has taken, for GiveBack
  };
  // `executor`: the one that asks. A pass that has paused goes on where it began, since its state lies there.
  Turn Take(int64_t flows, int executor = 0);
  void GiveBack(int64_t paused) { free_room_ += paused; }
  // Returns whether the scoring's pass must go on where it began.
  bool IsPinned(CaptureId id) const;
  // Those whose passes must go on there.
  std::vector<CaptureId> PinnedTo(int executor) const;
  // A batch of `tokens` of `flows` flows runs instead.
  void FlowsRun(int64_t flows, int64_t tokens);

 private:
  struct Member {
    std::shared_ptr<DeviceRun> run;
    int64_t ran = 0;              // positions, since it came, and what it would have run before
    int64_t waiting = 0;          // positions of its next pass
    int64_t paused = 0;           // positions for which that needs room; 0 also where it goes on after a pause
    std::optional<int> executor;  // that has begun its pass, where that may pause
  };

  int64_t waiting_members() const;
  // The one whose turn it is among those that need room, or among the others, and may run there; members_.end(): none
  // waits.
  std::map<CaptureId, Member>::iterator Next(bool needs_room, int executor);

  std::map<CaptureId, Member> members_;
  // Positions that scorings may run before it is the flows' turn. Below 0 after a pass that was larger.
  double credit_ = 0;
  int64_t free_room_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_
