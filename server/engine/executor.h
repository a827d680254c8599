// One of a model's executors: plans the rows of the batches that the scheduler forms, runs the forward passes over them
// on its replica, and starts the copies of their rows.
#ifndef HOOKLINE_SERVER_ENGINE_EXECUTOR_H_
#define HOOKLINE_SERVER_ENGINE_EXECUTOR_H_

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/types/span.h"
#include "server/engine/batch.h"
#include "server/engine/copier.h"
#include "server/engine/device_health.h"
#include "server/engine/ids.h"
#include "server/engine/pass_plan.h"
#include "server/engine/scheduler.h"
#include "server/model/model.h"
#include "server/model/transfer.h"

namespace hookline {

// Thread-safe.
class Executor {
 public:
  // All arguments must outlive the executor. EngineOptions explains `max_pending_bytes`,
  // CaptureLimits `max_batch_tokens`.
  Executor(ExecutorId id, Model* model, Transfer* transfer, Scheduler* scheduler, Copier* copier, DeviceHealth* health,
           int64_t max_pending_bytes, int64_t max_batch_tokens)
      : id_(id),
        model_(model),
        transfer_(transfer),
        scheduler_(scheduler),
        copier_(copier),
        health_(health),
        max_pending_bytes_(max_pending_bytes),
        max_batch_tokens_(max_batch_tokens) {}

  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  // Waits until the thread has computed a full batch on its device. That takes what would otherwise delay the first
  // pass: a library's workspace, kernels that are loaded at their first use, and memory. On the CPU nothing is tried.
  // RESOURCE_EXHAUSTED: a full batch does not fit.
  const absl::Status& WaitUntilReady() {
    ready_.WaitForNotification();
    return tried_;
  }
  // Waits for the thread. After Scheduler::Stop, or once its replica is lost, it ends with its current batch.
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run();
  absl::Status TryFullBatch();
  absl::Status TryBatch(int64_t sequences, int64_t positions);
  // Reads the tokens of sequences of datasets, which the scheduler leaves out. Drops the sequences of a flow whose file
  // cannot be read, and ends its captures.
  void ReadDatasets(Batch* batch);
  // Plans the rows of each member, with as many slabs as its window has, and reports them to the scheduler. Ends
  // captures whose rows would take too much of the device while they wait there.
  std::vector<std::unique_ptr<Delivery>> PlanDeliveries(Batch* batch);
  // Runs the passes that compute the rows of one batch's deliveries, and hands the deliveries to the copier, or to
  // another executor if the device is lost.
  void RunBatch(std::vector<std::unique_ptr<Delivery>> deliveries);
  // Runs the items [begin, end) of a batch. If that fails, halves the range until each failing item is alone, and ends
  // the captures of those items. UNAVAILABLE: the device is lost.
  absl::Status RunItems(BatchInFlight* batch, size_t begin, size_t end);
  // Runs one forward pass. If it fails, every delivery is as it was before.
  absl::Status RunPass(BatchInFlight* batch, size_t begin, size_t end);
  // Computes the hook points and starts the copies.
  absl::Status Compute(PassPlan* pass);
  // Waits for the copies that were started.
  absl::Status WaitForCopies();

  const ExecutorId id_;
  Model* const model_;
  Transfer* const transfer_;
  Scheduler* const scheduler_;
  Copier* const copier_;
  DeviceHealth* const health_;
  const int64_t max_pending_bytes_;
  const int64_t max_batch_tokens_;
  absl::Status tried_;  // set before `ready_` is notified
  absl::Notification ready_;
  std::thread thread_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_EXECUTOR_H_
