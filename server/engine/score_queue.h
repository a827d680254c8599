// The scorings, and other work of clients beside captures (device_run.h), that wait for one model's device, and whose
// turn it is.
#ifndef HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_
#define HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_

#include <cstdint>
#include <map>
#include <memory>

#include "server/engine/ids.h"

namespace hookline {

class DeviceRun;

// Fair by tokens: among scorings the one that has run the fewest goes first, and each gets as many as each flow of
// captures that could run at the same time. Not thread-safe; the scheduler's mutex guards it.
class ScoreQueue {
 public:
  void Add(CaptureId id, std::shared_ptr<DeviceRun> run);
  // Returns what was added, whose destruction may call the scheduler; null if there is none.
  std::shared_ptr<DeviceRun> Remove(CaptureId id);
  // Sets over how many positions the scoring's next forward pass runs; 0: it has none to run.
  void SetWaiting(CaptureId id, int64_t positions);

  bool has_waiting() const;
  // The scoring whose turn it is beside `flows` flows that could run; null: it is theirs.
  struct Turn {
    CaptureId id{};
    std::shared_ptr<DeviceRun> run;
    int64_t positions = 0;  // of its pass
  };
  Turn Take(int64_t flows);
  // A batch of `tokens` of `flows` flows runs instead.
  void FlowsRun(int64_t flows, int64_t tokens);

 private:
  struct Member {
    std::shared_ptr<DeviceRun> run;
    int64_t ran = 0;      // positions, since it came, and what it would have run before
    int64_t waiting = 0;  // positions of its next pass
  };

  int64_t waiting_members() const;

  std::map<CaptureId, Member> members_;
  // Positions that scorings may run before it is the flows' turn. Below 0 after a pass that was larger.
  double credit_ = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCORE_QUEUE_H_
