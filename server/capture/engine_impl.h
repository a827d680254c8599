// The engine's inside: what its threads share. One mutex guards all that decides who runs next; nothing that can wait
// or call out is done with it held (see Deferred).
#ifndef HOOKLINE_SERVER_CAPTURE_ENGINE_IMPL_H_
#define HOOKLINE_SERVER_CAPTURE_ENGINE_IMPL_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/slab_pool.h"
#include "server/base/steady.h"
#include "server/capture/delivery.h"
#include "server/capture/engine.h"
#include "server/capture/lane.h"
#include "server/capture/running_capture.h"
#include "server/model/transfer.h"

namespace hookline {

// Actions to run after a lock that is declared below it was released: callbacks, and letting go of slabs.
class Deferred {
 public:
  Deferred() = default;
  ~Deferred() {
    for (const std::function<void()>& action : actions_) action();
  }
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;

  void Run(std::function<void()> action) { actions_.push_back(std::move(action)); }
  bool empty() const { return actions_.empty(); }
  // Keeps `value` alive until then.
  template <typename T>
  void Drop(T value) {
    actions_.push_back([value = std::make_shared<T>(std::move(value))] {});
  }

 private:
  std::vector<std::function<void()>> actions_;
};

// What one forward pass brings, on its way to host memory.
struct FinishedBatch {
  std::vector<std::shared_ptr<Delivery>> deliveries;
  std::shared_ptr<TransferEvent> event;
  absl::Time launched;
  absl::Duration forward_time;  // zero on an accelerator: then it is measured when the event is reached
  int64_t tokens = 0;
  double layers = 0;  // blocks that it ran, at least 1
};

class EngineImpl;

// A model with the two threads that serve it: the executor runs forward passes and starts copies, the copier waits for
// them and hands rows to the sinks.
class Replica {
 public:
  Replica(EngineImpl* engine, std::unique_ptr<Model> model, std::unique_ptr<Transfer> transfer, EngineOptions options);
  ~Replica();

  const Model& model() const { return *model_; }
  // With defaults resolved for this model.
  const EngineOptions& options() const { return options_; }

  // Engine's mutex held, all of these.
  void AddLane(std::shared_ptr<Lane> lane);
  void RemoveLane(const Lane* lane);
  void Wake() { wake_executor_.SignalAll(); }
  // Sequences have come.
  void Arrived() {
    last_arrival_ = SteadyNow();
    Wake();
  }
  // The delivery's window has room again, or its capture has ended.
  void Resume(std::shared_ptr<Delivery> delivery);
  EngineSnapshot::ModelLoad load() const { return load_; }
  // Seconds for each token and block that it goes through; 0 before the first forward pass.
  double seconds_per_token_layer() const { return seconds_per_token_layer_; }
  void Stop();
  void Join();

 private:
  friend class EngineImpl;

  struct Batch {
    std::vector<BatchItem> items;
    std::vector<std::shared_ptr<Lane>> lanes;
    std::vector<std::pair<const Lane*, std::shared_ptr<RunningCapture>>> receivers;
  };

  // One forward pass over items of a batch: what it computes, and who takes which of its rows.
  struct Pass {
    struct Part {  // of one capture
      std::shared_ptr<Delivery> delivery;
      std::vector<int64_t> rows;  // of the pass; entry i is origins[i]'s
      int64_t sequences = 0;      // that run for the capture
      int64_t tokens = 0;
      absl::Duration copy_time;
    };
    struct Taker {
      size_t part = 0;     // into `parts`
      int hook_point = 0;  // of the capture
      int64_t rows = 0;    // the first so many of the part's
    };
    std::vector<Part> parts;
    std::map<int, std::vector<Taker>> takers;  // by the model's hook point
    std::vector<int64_t> places;               // of each item among the pass's sequences; -1: it is not run
    int64_t sequences = 0;
    int64_t positions = 0;  // of the longest sequence
    int64_t tokens = 0;     // padding not counted
    double layers = 1;      // blocks to run, at least 1
  };

  void ExecutorLoop();
  // Waits for sequences that can run and takes a batch; it may be empty. None when the engine stops.
  std::optional<Batch> NextBatch();
  bool LaneReady(Lane& lane, absl::Time now, absl::Time* look_again, Deferred* deferred);
  void AfterBatch(const Batch& batch);
  // Runs the items; where that fails, halves them until the ones at fault are alone.
  void RunItems(const Batch& batch, absl::Span<const BatchItem> items);
  // One forward pass. When it fails, every capture is as it was before.
  absl::Status RunPass(const Batch& batch, absl::Span<const BatchItem> items);
  Pass PlanPass(const Batch& batch, absl::Span<const BatchItem> items);
  absl::Status Compute(Pass* pass, absl::Span<const BatchItem> items);

  void CopierLoop();
  enum class Progress { kDone, kWaiting };
  absl::StatusOr<Progress> Advance(const std::shared_ptr<Delivery>& delivery);
  void StartCopies(Delivery& delivery, int hook_point, size_t first_group, absl::Status* status);
  void QueueGroups(Delivery& delivery);

  EngineImpl* const engine_;
  const std::unique_ptr<Model> model_;
  const std::unique_ptr<Transfer> transfer_;
  const EngineOptions options_;

  // Guarded by the engine's mutex.
  std::vector<std::shared_ptr<Lane>> lanes_;  // in the order of their turn
  absl::CondVar wake_executor_;
  absl::CondVar wake_copier_;
  std::deque<FinishedBatch> finished_;
  std::deque<std::shared_ptr<Delivery>> resumed_;
  int launched_batches_ = 0;  // not yet waited for
  absl::Time last_arrival_ = absl::InfinitePast();
  bool small_went_first_ = false;  // in the last batch
  bool stopping_ = false;
  bool copier_stopping_ = false;
  EngineSnapshot::ModelLoad load_;
  double seconds_per_token_layer_ = 0;

  std::thread executor_;
  std::thread copier_;
};

class EngineImpl : public Engine {
 public:
  using TransferFactory = std::function<absl::StatusOr<std::unique_ptr<Transfer>>(const std::string& device)>;

  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        std::vector<std::unique_ptr<Model>> models,
                                                        std::vector<std::unique_ptr<const Dataset>> datasets,
                                                        const TransferFactory& make_transfer);
  ~EngineImpl() override;

  const EngineOptions& options() const override { return options_; }
  std::vector<const Model*> models() const override;
  absl::StatusOr<const Model*> FindModel(absl::string_view name) const override;
  std::vector<const Dataset*> datasets() const override;
  absl::StatusOr<const Dataset*> FindDataset(absl::string_view name) const override;
  absl::StatusOr<std::shared_ptr<Capture>> Start(CaptureRequest request, absl::string_view address,
                                                 CaptureCallbacks callbacks) override;
  absl::StatusOr<CaptureStarted> Grant(const CaptureRequest& request) const override;
  absl::StatusOr<CaptureEstimate> Estimate(const CaptureRequest& request) const override;
  absl::StatusOr<std::string> RequestDigest(const CaptureRequest& request) const override;
  EngineSnapshot Snapshot() const override;
  void Drain(absl::Time deadline) override;

  // What a capture's handle does.
  absl::StatusOr<bool> AddSequences(const std::shared_ptr<RunningCapture>& capture, TokenBatch batch);
  void FinishSource(const std::shared_ptr<RunningCapture>& capture);
  void Cancel(const std::shared_ptr<RunningCapture>& capture);

 private:
  friend class Replica;

  // Captures that are admitted together: one, or the first members of a feed.
  struct Admission {
    std::shared_ptr<Lane> lane;
    std::vector<std::shared_ptr<RunningCapture>> captures;
    // Captures that came later and went first, while this was the oldest.
    std::vector<std::weak_ptr<RunningCapture>> passed_by;
  };

  EngineImpl(const EngineOptions& options, std::shared_ptr<uint8_t> memory,
             std::vector<std::unique_ptr<const Dataset>> datasets);

  absl::StatusOr<Replica*> FindReplica(absl::string_view name) const;
  Replica* ReplicaOf(const RunningCapture& capture) const;
  absl::Status CheckSource(const CaptureRequest& request, const CapturePlan& plan, const Replica& replica) const;

  absl::Status CountCapture(absl::string_view address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status JoinFeed(const FeedSource& feed, const std::shared_ptr<RunningCapture>& capture)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AdmitWaiting() ABSL_LOCKS_EXCLUDED(mu_);
  // Which of those that wait can be admitted now; the end if none can.
  std::deque<Admission>::iterator NextAdmission(Deferred* deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Admit(const std::shared_ptr<RunningCapture>& capture, Lane& lane, Deferred* deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  CaptureStarted StartedOf(const CapturePlan& plan, const ResumePosition& position) const;

  // The capture takes no more sequences and ends so when all that is in flight has reached its queue.
  void StopCapture(const std::shared_ptr<RunningCapture>& capture, StopReason reason, absl::Status status,
                   Deferred* deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaveLane(const std::shared_ptr<RunningCapture>& capture, Deferred* deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CloseFeed(const Lane& lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MaybeEnd(const std::shared_ptr<RunningCapture>& capture, Deferred* deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MaybeEndLane(Lane& lane, Deferred* deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SlabReturned(const std::shared_ptr<RunningCapture>& capture) ABSL_LOCKS_EXCLUDED(mu_);
  void Released(RunningCapture* capture) ABSL_LOCKS_EXCLUDED(mu_);

  const EngineOptions options_;
  const std::vector<std::unique_ptr<const Dataset>> datasets_;
  SlabPool pool_;

  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<Replica>> replicas_;  // fixed after Create
  std::deque<Admission> admissions_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<const Replica*, std::string>, std::shared_ptr<Lane>> feeds_ ABSL_GUARDED_BY(mu_);
  std::map<RunningCapture*, std::shared_ptr<RunningCapture>> captures_ ABSL_GUARDED_BY(mu_);  // not ended
  int counted_captures_ ABSL_GUARDED_BY(mu_) = 0;  // not released by their sink
  std::map<std::string, int, std::less<>> captures_by_address_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<int64_t> ended_by_reason_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<const Model*, int>, std::pair<int64_t, int64_t>> delivered_ ABSL_GUARDED_BY(mu_);  // rows, bytes
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_ENGINE_IMPL_H_
