// Queues the scorings and searches (device_run.h) that wait for one model's device, and decides whose turn it is.
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

// Passes that may pause for their clients need room on the device. They get it in the order of their turns: a pass that
// has to wait for room is not overtaken by others that need room.
//
// The queue is fair by tokens: among scorings the one that has run the fewest goes first, and each gets as many as each
// flow of captures that could run at the same time. Not thread-safe; the scheduler's mutex guards it.
class ScoreQueue {
 public:
  // There is room for `max_paused` positions.
  explicit ScoreQueue(int64_t max_paused) : free_room_(max_paused) {}

  void Add(CaptureId id, std::shared_ptr<DeviceRun> run);
  // Returns the run that was added, or null if there is none. Destroying it may call the scheduler.
  std::shared_ptr<DeviceRun> Remove(CaptureId id);
  // Sets over how many positions the scoring's next forward pass runs, and for how many it needs room to pause.
  void SetWaiting(CaptureId id, int64_t positions, int64_t paused);

  // The scoring whose turn it is; `run` is null if it is the flows' turn.
  struct Turn {
    CaptureId id{};
    std::shared_ptr<DeviceRun> run;
    int64_t positions = 0;  // of its pass
    int64_t paused = 0;     // positions of the room that it has taken, for GiveBack
  };
  // Takes the turn for `executor`, while `flows` flows could run too. A pass that has paused goes on only with the
  // executor that began it, since its state lies there.
  Turn Take(int64_t flows, int executor = 0);
  void GiveBack(int64_t paused) { free_room_ += paused; }
  // Returns whether the scoring's pass must go on with the executor that began it.
  bool IsPinned(CaptureId id) const;
  // Returns the scorings whose passes must go on with this executor.
  std::vector<CaptureId> PinnedTo(int executor) const;
  // Records that a batch of `tokens` tokens runs instead, while `flows` flows could run.
  void FlowsRun(int64_t flows, int64_t tokens);

 private:
  struct Member {
    std::shared_ptr<DeviceRun> run;
    int64_t ran = 0;              // positions since it came, on top of the others' least `ran` at that time
    int64_t waiting = 0;          // positions of its next pass
    int64_t paused = 0;           // positions for which that pass needs room; 0 also if it goes on after a pause
    std::optional<int> executor;  // the one that has begun its pass, if that may pause
  };

  int64_t waiting_members() const;
  // Returns the member whose turn it is, among those that need room or among the others, and that may run on
  // `executor`; members_.end() if none waits.
  std::map<CaptureId, Member>::iterator Next(bool needs_room, int executor);

  std::map<CaptureId, Member> members_;
  // Positions that scorings may run before it is the flows' turn. It is below 0 after a pass that was larger.
  double credit_ = 0;
  int64_t free_room_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_
