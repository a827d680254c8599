// Work that one request runs on a model's device beside captures, one forward pass at a time: a scoring or a search for
// top activations.
#ifndef HOOKLINE_SERVER_ENGINE_DEVICE_RUN_H_
#define HOOKLINE_SERVER_ENGINE_DEVICE_RUN_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/pause_room.h"
#include "server/model/model.h"

namespace hookline {

// Thread-safe. The scheduler decides whose turn it is (score_queue.h); the model's executor runs the pass.
class DeviceRun {
 public:
  virtual ~DeviceRun() = default;

  // The needs of the run that the scheduler must know.
  struct Need {
    int64_t positions = 0;  // of the next forward pass; 0 if it must not run now, or while a pass runs
    int64_t paused = 0;     // positions for which that pass needs room to pause
    absl::Time answer_by = absl::InfiniteFuture();  // when its client has been silent for too long
  };
  virtual Need GetNeed() const = 0;
  // Runs the next pass, or the next part of one, on the thread of the model's executor. `room` is for a pass that may
  // pause, otherwise null. `judge` is called with the status of a failure and returns UNAVAILABLE if the model's device
  // is lost: the pass then runs again from its beginning, on another device, unless End is called first.
  using Judge = absl::FunctionRef<absl::Status(absl::Status)>;
  virtual void RunNext(Model& model, std::unique_ptr<PauseRoom> room, Judge judge) = 0;
  // Ends the run, unless it has ended. The end is queued behind what already waits for the client.
  virtual void End(absl::Status status) = 0;
  // Ends the run if its client should have answered by `now`. Only clients whose passes pause have to answer.
  virtual void EndIfSilent(absl::Time /*now*/) {}

 protected:
  // Returns whether the pass that ended with `status` failed because its device is lost. Sets `status` to the result of
  // `judge` if the pass failed.
  static bool IsLost(Judge judge, absl::Status* status) {
    if (status->ok() || absl::IsUnavailable(*status)) return false;
    *status = judge(std::move(*status));
    return absl::IsUnavailable(*status);
  }
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_DEVICE_RUN_H_
