// Tells a device that is gone from a batch that cannot be computed. After an assertion on the device or an error of its
// memory every later call fails, so that a server would go on to fail every capture and look healthy; only a new
// process helps.
#ifndef HOOKLINE_SERVER_ENGINE_DEVICE_HEALTH_H_
#define HOOKLINE_SERVER_ENGINE_DEVICE_HEALTH_H_

#include <functional>
#include <string>
#include <utility>

#include "absl/base/call_once.h"
#include "absl/status/status.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler.h"
#include "server/model/transfer.h"

namespace hookline {

// The health of one replica's devices. Thread-safe.
class DeviceHealth {
 public:
  // `scheduler` outlives it. `executor` is one of the replica's, and `devices` are their names. A device is lost when
  // it fails twice in a row: what was asked of it, and then next to nothing. The replica gets no batch any more then,
  // and what it had runs again on the model's others. `on_last_lost` runs if there are none; every capture has ended by
  // then, with UNAVAILABLE and a resume token.
  DeviceHealth(ExecutorId executor, std::string devices, Scheduler* scheduler,
               std::function<void(absl::Status)> on_last_lost)
      : executor_(executor),
        devices_(std::move(devices)),
        scheduler_(scheduler),
        on_last_lost_(std::move(on_last_lost)) {}

  // Returns `status`, the result of something that the replica did; UNAVAILABLE where its devices are lost. To be
  // called by a thread that `transfer` has bound.
  absl::Status Judge(absl::Status status, Transfer& transfer);

 private:
  const ExecutorId executor_;
  const std::string devices_;
  Scheduler* const scheduler_;
  const std::function<void(absl::Status)> on_last_lost_;
  absl::once_flag once_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_DEVICE_HEALTH_H_
