// Distinguishes a lost device from a batch that cannot be computed. After a failed assertion on a device or an error of
// its memory, every later call fails: without this check the server would fail every capture and still look healthy.
// Only a new process can use the device again.
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
  // `scheduler` outlives this object. `executor` is one of the replica's executors, and `devices` names its devices. A
  // device is lost when an operation fails on it and then a trivial check fails too. The replica then gets no more
  // batches, and its unfinished batches run again on the model's other replicas. If there are none, `on_last_lost`
  // runs; by then every capture has ended with UNAVAILABLE and a resume token.
  DeviceHealth(ExecutorId executor, std::string devices, Scheduler* scheduler,
               std::function<void(absl::Status)> on_last_lost)
      : executor_(executor),
        devices_(std::move(devices)),
        scheduler_(scheduler),
        on_last_lost_(std::move(on_last_lost)) {}

  // Returns `status`, the result of an operation of the replica, or UNAVAILABLE if its devices are lost. Call it from a
  // thread that `transfer` has bound.
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
