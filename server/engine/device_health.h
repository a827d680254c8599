// Tells a device that is gone from a batch that cannot be computed. After an assertion on the device or an error of its
// memory every later call fails, so that a server would go on to fail every capture and look healthy; only a new
// process helps.
#ifndef HOOKLINE_SERVER_ENGINE_DEVICE_HEALTH_H_
#define HOOKLINE_SERVER_ENGINE_DEVICE_HEALTH_H_

#include <functional>
#include <string>

#include "absl/base/call_once.h"
#include "absl/status/status.h"
#include "server/engine/scheduler.h"
#include "server/model/transfer.h"

namespace hookline {

// Thread-safe.
class DeviceHealth {
 public:
  // `scheduler` outlives it. `on_lost` runs once, when the device fails twice in a row: what was asked of it, and then
  // next to nothing. Every capture has ended by then, with UNAVAILABLE and a resume token.
  DeviceHealth(std::string device, Scheduler* scheduler, std::function<void(absl::Status)> on_lost)
      : device_(std::move(device)), scheduler_(scheduler), on_lost_(std::move(on_lost)) {}

  // Returns `status`, the result of something that the device did; UNAVAILABLE where the device is lost. To be called
  // by a thread that `transfer` has bound.
  absl::Status Judge(absl::Status status, Transfer& transfer);

 private:
  const std::string device_;
  Scheduler* const scheduler_;
  const std::function<void(absl::Status)> on_lost_;
  absl::once_flag once_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_DEVICE_HEALTH_H_
