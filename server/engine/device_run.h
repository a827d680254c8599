// Work of one client on a model's device beside captures, one forward pass at a time: scores, top activations.
#ifndef HOOKLINE_SERVER_ENGINE_DEVICE_RUN_H_
#define HOOKLINE_SERVER_ENGINE_DEVICE_RUN_H_

#include <cstdint>

#include "absl/status/status.h"
#include "server/model/model.h"

namespace hookline {

// Thread-safe. The scheduler decides whose turn it is (score_queue.h); the model's executor runs the pass.
class DeviceRun {
 public:
  virtual ~DeviceRun() = default;

  // Positions of the next forward pass if it is to be run now; otherwise, or while one runs, 0.
  virtual int64_t NextPositions() const = 0;
  // Runs the next pass, on the model's executor's thread. Returns how the pass went, as its client is told too.
  virtual absl::Status RunNext(Model& model) = 0;
  // Ends it after what is queued for its client, unless it has ended.
  virtual void End(absl::Status status) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_DEVICE_RUN_H_
