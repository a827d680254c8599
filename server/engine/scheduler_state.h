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

struct ModelSetup {
  const ModelInfo* info = nullptr;  // outlives the scheduler
  int64_t max_batch_tokens = 0;
  int64_t max_paused_tokens = 0;  // EngineOptions
  // Runs, with no lock held, when rows of the capture that have no slabs may get some or are no longer wanted.
  std::function<void(CaptureId)> on_room;
};

// The state that the executors of one model share.
struct ModelQueue {
  explicit ModelQueue(ModelSetup model_setup) : setup(std::move(model_setup)), scores(setup.max_paused_tokens) {}
  const ModelSetup setup;
  std::vector<FlowId> turn;  // flows with an admitted capture, in the order of their turn
  SteadyCondVar wake;
  int launched_batches = 0;  // not yet computed
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
  std::map<std::string, int64_t> staged_bytes;  // by device, of rows that wait for windows
  std::map<FlowId, Flow> flows;
  std::map<CaptureId, ScoreEntry> scores;
  std::map<std::pair<ModelId, std::string>, FlowId> feeds;
  std::deque<Admission> admissions;  // oldest first
  std::map<CaptureId, UnreleasedCapture> unreleased;
  std::map<CaptureId, ExpiringCapture> expiring;
  std::map<std::string, std::shared_ptr<ClientShare>> shares;
  int64_t stalled = 0;
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
