// The state that the scheduler's mutex guards: captures, flows, feeds, admissions and scorings by value, named by id
// elsewhere. What happens to them is told by topic, in functions of this state: admission_queue.h, next_batch.h,
// stalls.h, capture_end.h and status_report.h.
#ifndef HOOKLINE_SERVER_ENGINE_SCHEDULER_STATE_H_
#define HOOKLINE_SERVER_ENGINE_SCHEDULER_STATE_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/slab_pool.h"
#include "server/base/steady.h"
#include "server/capture/client_identity.h"
#include "server/engine/admission.h"
#include "server/engine/busy_share.h"
#include "server/engine/capture_state.h"
#include "server/engine/client_share.h"
#include "server/engine/event_queue.h"
#include "server/engine/flow.h"
#include "server/engine/ids.h"
#include "server/engine/options.h"
#include "server/engine/quotas.h"
#include "server/engine/score_queue.h"
#include "server/engine/snapshot.h"
#include "server/model/model.h"

namespace hookline {

// The batches that a client may stream ahead: enough that the device never waits for it. It hears of room again when
// half of them have run.
inline constexpr int64_t kStreamedBatchesAhead = 4;

// One batch is computed while the rows of the one before are copied; more would only delay the next client.
inline constexpr int kMaxLaunchedBatches = 2;

struct ExecutorSetup {
  int replica = 0;                   // of the model, from 0
  std::vector<std::string> devices;  // that it runs on, as LibTorch names them
  // Runs, with no lock held, when rows of the capture that this executor has computed may go on: slabs came back, it is
  // their turn, or they are no longer wanted.
  std::function<void(CaptureId)> on_room;
};

struct ModelSetup {
  const ModelInfo* info = nullptr;  // outlives the scheduler
  int64_t max_batch_tokens = 0;
  int64_t max_paused_tokens = 0;         // EngineOptions
  std::vector<ExecutorSetup> executors;  // at least one
};

// The state that the executors of one model share.
struct ModelQueue {
  struct Executor {
    bool MayLaunch() const { return !is_lost && launched_batches < kMaxLaunchedBatches; }

    SteadyCondVar wake;
    bool waits = false;        // for `wake`
    int launched_batches = 0;  // not yet computed
    bool is_lost = false;      // its device has failed
    int64_t tokens = 0;        // run
    BusyShare busy;
  };

  explicit ModelQueue(ModelSetup model_setup)
      : setup(std::move(model_setup)),
        executors(setup.executors.size()),
        left(static_cast<int>(executors.size())),
        scores(setup.max_paused_tokens) {}
  // Lets one of the executors that wait look whether something can run: one that may launch a batch if there is one. It
  // wakes the next one if it leaves something over. All of them at once would look in vain.
  void WakeOne() {
    Executor* chosen = nullptr;
    for (Executor& executor : executors) {
      if (!executor.waits) continue;
      chosen = &executor;
      if (executor.MayLaunch()) break;
    }
    if (chosen == nullptr) return;
    chosen->waits = false;
    chosen->wake.NotifyAll();
  }
  void WakeAll() {
    for (Executor& executor : executors) executor.wake.NotifyAll();
  }

  const ModelSetup setup;
  std::vector<Executor> executors;
  int left;                                   // executors that are not lost
  std::vector<Flow*> turn;                    // flows with an admitted capture, in the order of their turn
  std::deque<std::shared_ptr<Rerun>> reruns;  // of batches that lost executors had
  absl::Time last_arrival = absl::InfinitePast();
  bool small_went_first = false;  // in the last batch
  EngineSnapshot::ModelLoad load;
  double seconds_per_token_layer = 0;
  ScoreQueue scores;
};

struct ScoreEntry {
  ModelId model{};
  std::shared_ptr<DeviceRun> run;
  int64_t held_tokens = 0;
  std::shared_ptr<ClientShare> share;
  absl::Time answer_by = absl::InfiniteFuture();  // when to look whether its client is silent for too long
};

// A capture whose sink has neither consumed the final event nor been destroyed. It counts against the limits.
struct UnreleasedCapture {
  std::string client;
  std::shared_ptr<EventQueue> events;
  int64_t consumed_events = 0;  // when this was last looked at
  absl::Time last_read;         // when they were last seen to grow
};

// A capture that ended because its client did not read; it does not count any more. When the time has passed its
// transport releases what it still holds of it.
struct ExpiringCapture {
  std::shared_ptr<EventQueue> events;
  absl::Time deadline;
};

// Not thread-safe: the scheduler has one, guarded by its mutex. Its functions wait for nothing and call nothing back;
// what must run without the mutex they give to AfterUnlock.
struct SchedulerState {
  // Functions of the scheduler, to be called with no lock held.
  struct Calls {
    std::function<void(CaptureId)> slab_returned;
    std::function<void()> admit_waiting;
    std::function<void(CaptureId)> score_may_run;
    std::function<void(ModelId, int64_t)> pause_ended;
  };
  // All but `scheduler_calls` outlive the state.
  SchedulerState(const EngineOptions& engine_options, const Clock& engine_clock, SlabPool& slab_pool,
                 Calls scheduler_calls);

  void AfterUnlock(std::function<void()> action);
  // Keeps `value` alive until the mutex is released, because destroying it may call back.
  template <typename T>
  void KeepUntilUnlocked(T value) {
    AfterUnlock([value = std::make_shared<T>(std::move(value))] {});
  }

  ModelQueue& QueueOf(ModelId model) { return models[static_cast<size_t>(model)]; }
  const ModelQueue& QueueOf(ModelId model) const { return models[static_cast<size_t>(model)]; }
  ModelQueue::Executor& ExecutorOf(ExecutorId id) { return QueueOf(id.model).executors[static_cast<size_t>(id.index)]; }
  const ModelQueue::Executor& ExecutorOf(ExecutorId id) const {
    return QueueOf(id.model).executors[static_cast<size_t>(id.index)];
  }
  const ExecutorSetup& SetupOf(ExecutorId id) const {
    return QueueOf(id.model).setup.executors[static_cast<size_t>(id.index)];
  }
  // Bytes of rows that wait for windows on the executor's fullest device.
  int64_t StagedBytes(ExecutorId id) const;
  void AddStagedBytes(ExecutorId id, int64_t bytes);
  // Call this when the room of the flow's receivers may have changed.
  void ForgetRoom(FlowId id);
  // Lets the rows of the capture go on whose turn it is, if there are any.
  void ResumeFirst(CaptureId id, const CaptureState& capture);
  // Returns null if the capture has ended and nothing of it is in flight.
  CaptureState* Find(CaptureId id);
  // The client's share, with what its identity says now.
  std::shared_ptr<ClientShare> ShareOf(const ClientIdentity& client);
  ClientUse UseOf(absl::string_view client) const;
  FlowId NewFlow(const CaptureState& capture);

  const EngineOptions& options;
  const Clock& clock;
  SlabPool& pool;
  const Calls calls;

  std::vector<std::function<void()>> after_unlock;
  std::deque<ModelQueue> models;
  std::map<CaptureId, CaptureState> captures;
  std::map<std::string, int64_t> staged_bytes;  // by device, of rows that wait for windows; StagedBytes has the rule
  std::map<FlowId, Flow> flows;
  std::map<CaptureId, ScoreEntry> scores;
  std::map<std::pair<ModelId, std::string>, FlowId> feeds;
  std::deque<Admission> admissions;  // oldest first
  std::map<CaptureId, UnreleasedCapture> unreleased;
  std::map<CaptureId, ExpiringCapture> expiring;
  std::map<std::string, std::shared_ptr<ClientShare>> shares;
  int64_t stalled = 0;
  absl::Time next_stall_look = absl::InfinitePast();
  absl::Time waiting_since = absl::InfiniteFuture();  // since when an admission waits; future: none does
  absl::Time last_wait_log = absl::InfinitePast();
  std::vector<int64_t> ended_by_reason;
  int64_t last_id = 0;
  bool draining = false;
  bool stopped = false;
};

template <typename T>
void EraseValue(std::vector<T>* values, const T& value) {
  values->erase(std::remove(values->begin(), values->end(), value), values->end());
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SCHEDULER_STATE_H_
