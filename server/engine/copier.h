// The copier of one executor: it waits for the copies of a batch, hands rows to their sinks when it is their turn, and,
// when slabs come back, copies rows that had found none.
#ifndef HOOKLINE_SERVER_ENGINE_COPIER_H_
#define HOOKLINE_SERVER_ENGINE_COPIER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/engine/batch.h"
#include "server/engine/delivery.h"
#include "server/engine/device_health.h"
#include "server/engine/ids.h"
#include "server/engine/scheduler.h"
#include "server/model/transfer.h"

namespace hookline {

// The rows of one batch, on their way to host memory.
struct BatchInFlight {
  std::vector<std::unique_ptr<Delivery>> deliveries;
  std::vector<LaunchedPass> passes;
  // Reached when the copies that the executor started have ended. Null if the rows are lost.
  std::unique_ptr<TransferEvent> copied;
  absl::Time launched;
  // This is set on the CPU, where Forward returns when all is computed. Otherwise the time is known when `copied`
  // is reached.
  std::optional<absl::Duration> forward_time;
  int64_t tokens = 0;
  int layers = 1;
};

// Thread-safe.
class Copier {
 public:
  struct Count {
    int64_t rows = 0;
    int64_t bytes = 0;
  };

  // All arguments must outlive the copier. `transfer` is the copier's own, so that its copies do not queue behind
  // the executor's.
  Copier(ExecutorId id, Scheduler* scheduler, Transfer* transfer, DeviceHealth* health)
      : id_(id), scheduler_(scheduler), transfer_(transfer), health_(health) {}

  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  // Waits until everything that was added has been handed on or dropped.
  void Join();

  // Adds a batch that the scheduler knows as launched. The scheduler bounds how many there are: it launches few at
  // a time.
  void Add(BatchInFlight batch) ABSL_LOCKS_EXCLUDED(mutex_);

  // Call this when rows of the capture may go on: slabs of its window came back, it is their turn, or they are no
  // longer wanted.
  void Resume(CaptureId capture) ABSL_LOCKS_EXCLUDED(mutex_);

  // Returns what was handed to sinks, by the model's hook points.
  std::map<int, Count> delivered() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Deliveries of one capture, in order.
  using Deliveries = std::deque<std::unique_ptr<Delivery>>;
  // Holds deliveries that may go on, or a new batch, or neither when the copier ends.
  struct Work {
    Deliveries resumed;
    std::optional<BatchInFlight> batch;
  };

  void Run();
  Work NextWork() ABSL_LOCKS_EXCLUDED(mutex_);
  void FinishBatch(BatchInFlight batch) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives deliveries of one batch, whose rows were lost with the device, to another executor; drops them if there
  // is none.
  void RunAgain(std::vector<std::unique_ptr<Delivery>> deliveries) ABSL_LOCKS_EXCLUDED(mutex_);
  // Hands over as much as the capture's window allows, and parks the rest.
  void Advance(Deliveries deliveries) ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns whether the delivery is over: handed over whole, or no longer wanted. Otherwise it waits for its turn or
  // for room.
  absl::StatusOr<bool> AdvanceOne(Delivery& delivery) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the delivery, and gives back its slabs and what it holds on the device.
  void Finish(std::unique_ptr<Delivery> delivery) ABSL_LOCKS_EXCLUDED(mutex_);
  void HandOver(Delivery& delivery) ABSL_LOCKS_EXCLUDED(mutex_);
  void Park(Deliveries deliveries) ABSL_LOCKS_EXCLUDED(mutex_);
  // Parks the delivery among those of its capture, in the order of their turns, and returns none. If it comes before
  // all that are parked, returns it with those instead.
  Deliveries JoinParked(std::unique_ptr<Delivery> delivery) ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns whether it makes sense to look at a parked delivery again.
  bool MayGoOn(const Delivery& delivery) const;

  const ExecutorId id_;
  Scheduler* const scheduler_;
  Transfer* const transfer_;
  DeviceHealth* const health_;
  std::thread thread_;

  // Only the thread uses this.
  absl::Time last_reached_ = absl::InfinitePast();

  // This is never held together with another mutex.
  mutable absl::Mutex mutex_;
  absl::CondVar wake_;
  std::deque<BatchInFlight> batches_ ABSL_GUARDED_BY(mutex_);
  std::map<CaptureId, Deliveries> parked_ ABSL_GUARDED_BY(mutex_);  // wait for their turn or for slabs
  std::deque<CaptureId> resumable_ ABSL_GUARDED_BY(mutex_);         // parked ones that may go on
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<int, Count> delivered_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_COPIER_H_
