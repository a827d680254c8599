#include "server/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/base/call_once.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/base/clock.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/capture/token_batch.h"
#include "server/engine/copier.h"
#include "server/engine/create.h"
#include "server/engine/device_health.h"
#include "server/engine/executor.h"
#include "server/engine/scheduler.h"
#include "server/engine/score_run.h"
#include "server/engine/top_activations_run.h"
#include "server/model/stages_transfer.h"

namespace hookline {
namespace {

template <typename T>
std::string Names(const std::vector<T>& named) {
  return named.empty() ? "none" : absl::StrJoin(named, ", ");
}

// A scoring keeps this much of its request until it ends, in token ids, each of which counts as 16 bytes
// (--max-held-tokens): for each intervention besides its numbers, and for each edit.
constexpr size_t kTokensOfIntervention = 20;
constexpr size_t kTokensOfEdit = 2;

int64_t HeldTokens(const ScorePlan& plan) {
  size_t held = static_cast<size_t>(plan.tokens.tokens());
  for (const Variant& variant : plan.variants) {
    for (const Intervention& one : variant.interventions) {
      held += kTokensOfIntervention + one.vector.size() + one.positions.size() + one.ignored_token_ids.size() +
              kTokensOfEdit * one.edits.size();
    }
  }
  return static_cast<int64_t>(held);
}

class CaptureHandle final : public Capture {
 public:
  // Checks streamed sequences against `info` and `limits`.
  CaptureHandle(Scheduler* scheduler, Scheduler::Admitted admitted, const ModelInfo* info, const CaptureLimits& limits,
                int64_t first_sequence)
      : scheduler_(scheduler),
        admitted_(std::move(admitted)),
        info_(info),
        limits_(limits),
        next_streamed_sequence_(first_sequence) {}
  ~CaptureHandle() override { Cancel(); }

  std::optional<CaptureEvent> Next() override { return admitted_.events->Next(); }
  absl::StatusOr<bool> AddSequences(TokenBatch batch) override {
    const int64_t first_sequence = next_streamed_sequence_.fetch_add(batch.sequences());
    if (absl::Status status = CheckTokens(batch, "tokens", first_sequence, *info_, limits_); !status.ok()) {
      scheduler_->Failed(admitted_.id, status);
      return status;
    }
    return scheduler_->AddSequences(admitted_.id, std::move(batch));
  }
  void FinishSource() override { scheduler_->FinishSource(admitted_.id); }
  void Cancel() override {
    scheduler_->Cancel(admitted_.id);
    admitted_.events->Close();
  }
  std::optional<int> CapturesAhead() const override { return scheduler_->CapturesAhead(admitted_.id); }
  void AddWireTime(absl::Duration duration) override { admitted_.events->AddWireTime(duration); }

 private:
  Scheduler* const scheduler_;
  const Scheduler::Admitted admitted_;
  const ModelInfo* const info_;
  const CaptureLimits limits_;
  std::atomic<int64_t> next_streamed_sequence_;
};

// The client's side of a DeviceRun: `Face` is Scoring or TopActivationsSearch.
template <typename Face, typename Event, typename Run>
class RunHandle : public Face {
 public:
  RunHandle(Scheduler* scheduler, CaptureId id, std::shared_ptr<Run> run)
      : scheduler_(scheduler), id_(id), run_(std::move(run)) {}
  ~RunHandle() override { Release(); }

  std::optional<Event> Next() override {
    std::optional<Event> event = run_->Next();
    if (event.has_value()) MayRun();
    return event;
  }
  void Cancel() override { Release(); }

 protected:
  Run& run() { return *run_; }
  void MayRun() { scheduler_->ScoreMayRun(id_); }

 private:
  void Release() {
    run_->Close();
    scheduler_->RemoveScore(id_);
  }

  Scheduler* const scheduler_;
  const CaptureId id_;
  const std::shared_ptr<Run> run_;
};

class ScoringHandle final : public RunHandle<Scoring, ScoreEvent, ScoreRun> {
 public:
  using RunHandle::RunHandle;

  absl::Status Answer(const RowsAnswer& answer) override {
    absl::Status status = run().Answer(answer);
    MayRun();
    return status;
  }
  void FinishAnswers() override { run().FinishAnswers(); }
};

using SearchHandle = RunHandle<TopActivationsSearch, TopActivationsEvent, TopActivationsRun>;

// The devices of an executor's stages, each once.
std::vector<std::string> DevicesOf(const ServedModel::Executor& executor) {
  std::vector<std::string> devices;
  for (const Stage& stage : executor.stages) {
    if (std::find(devices.begin(), devices.end(), stage.device) == devices.end()) devices.push_back(stage.device);
  }
  return devices;
}

// The two threads that compute on one of a served model's executors and bring its rows to host memory.
struct Worker {
  std::unique_ptr<Transfer> executor_transfer;
  std::unique_ptr<Transfer> copier_transfer;
  DeviceHealth* health = nullptr;
  std::unique_ptr<Copier> copier;
  std::unique_ptr<Executor> executor;
};

// A model with everything that serves it.
struct Served {
  Served(ServedModel served_model, const CaptureLimits& its_limits)
      : model(std::move(served_model)), limits(its_limits), workers(model.executors.size()) {}

  const ModelInfo& info() const { return model.first().info(); }

  const ServedModel model;
  const CaptureLimits limits;
  ModelId id{};
  std::vector<std::unique_ptr<DeviceHealth>> health;  // by replica
  std::vector<Worker> workers;                        // in the order of model.executors
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineOptions& options, std::shared_ptr<uint8_t> slab_memory,
             std::vector<std::unique_ptr<const Dataset>> datasets, std::function<void(absl::Status)> on_lost)
      : options_(options),
        datasets_(std::move(datasets)),
        on_lost_(std::move(on_lost)),
        scheduler_(options, std::move(slab_memory), Clock::Steady()) {}

  ~EngineImpl() override {
    scheduler_.Stop();
    ForEachWorker([](Worker& worker) { worker.executor->Join(); });
    ForEachWorker([](Worker& worker) { worker.copier->Join(); });
  }

  absl::Status Add(ServedModel model, const TransferFactory& make_transfer);
  // Returns when every model has shown that it can compute.
  absl::Status StartThreads();

  const EngineOptions& options() const override { return options_; }
  std::vector<const Model*> models() const override;
  absl::StatusOr<const Model*> FindModel(absl::string_view name) const override;
  std::vector<const Dataset*> datasets() const override;
  absl::StatusOr<const Dataset*> FindDataset(absl::string_view name) const override;
  absl::StatusOr<CapturePlan> Plan(CaptureRequest request) const override;
  CaptureEstimate Estimate(const CapturePlan& plan) const override;
  absl::StatusOr<std::shared_ptr<Capture>> Start(CapturePlan plan, const ClientIdentity& client,
                                                 CaptureCallbacks callbacks) override;
  std::vector<CaptureStatus> ListCaptures(const ClientIdentity& client) const override {
    return scheduler_.ListCaptures(client);
  }
  absl::Status StopCapture(int64_t id, const ClientIdentity& client) override {
    return scheduler_.StopByOperator(CaptureId{id}, client);
  }
  absl::StatusOr<ScorePlan> PlanScore(ScoreRequest request) const override;
  absl::StatusOr<std::shared_ptr<Scoring>> StartScore(ScorePlan plan, const ClientIdentity& client,
                                                      std::function<void()> on_ready) override;
  absl::StatusOr<TopActivationsPlan> PlanTopActivations(TopActivationsRequest request) const override;
  absl::StatusOr<std::shared_ptr<TopActivationsSearch>> StartTopActivations(TopActivationsPlan plan,
                                                                            const ClientIdentity& client,
                                                                            std::function<void()> on_ready) override;
  EngineSnapshot Snapshot() const override;
  void Drain(absl::Time deadline) override { scheduler_.Drain(SteadyNow() + (deadline - absl::Now())); }

 private:
  absl::StatusOr<const Served*> FindServed(absl::string_view name) const;
  const Served& ServedOf(const Model* model) const;
  void ForEachWorker(absl::FunctionRef<void(Worker&)> act) {
    for (const auto& served : served_) {
      for (Worker& worker : served->workers) act(worker);
    }
  }
  void DeviceLost(const absl::Status& status) {
    absl::call_once(lost_, [&] { on_lost_(status); });
  }

  const EngineOptions options_;
  const std::vector<std::unique_ptr<const Dataset>> datasets_;
  const std::function<void(absl::Status)> on_lost_;
  Scheduler scheduler_;
  absl::once_flag lost_;
  std::vector<std::unique_ptr<Served>> served_;  // fixed once the threads run
};

absl::Status EngineImpl::Add(ServedModel model, const TransferFactory& make_transfer) {
  const CaptureLimits limits = LimitsFor(options_, model.first().info(), static_cast<int64_t>(model.executors.size()));
  Served& served = *served_.emplace_back(std::make_unique<Served>(std::move(model), limits));
  ModelSetup setup;
  setup.info = &served.info();
  setup.max_batch_tokens = limits.max_batch_tokens;
  setup.max_paused_tokens = limits.max_paused_tokens;
  for (size_t i = 0; i < served.workers.size(); ++i) {
    const ServedModel::Executor& executor = served.model.executors[i];
    Worker& worker = served.workers[i];
    const std::vector<std::string> devices = DevicesOf(executor);
    ASSIGN_OR_RETURN(worker.executor_transfer, make_transfer(devices));
    ASSIGN_OR_RETURN(worker.copier_transfer, make_transfer(devices));
    setup.executors.push_back(
        {executor.replica, devices, [&worker](CaptureId capture) { worker.copier->Resume(capture); }});
  }
  served.id = scheduler_.AddModel(std::move(setup));
  for (size_t i = 0; i < served.workers.size(); ++i) {
    const ServedModel::Executor& executor = served.model.executors[i];
    Worker& worker = served.workers[i];
    const ExecutorId id{served.id, static_cast<int>(i)};
    if (static_cast<size_t>(executor.replica) == served.health.size()) {
      served.health.push_back(
          std::make_unique<DeviceHealth>(id, absl::StrJoin(DevicesOf(executor), "+"), &scheduler_,
                                         [this](const absl::Status& status) { DeviceLost(status); }));
    }
    worker.health = served.health.back().get();
    worker.copier = std::make_unique<Copier>(id, &scheduler_, worker.copier_transfer.get(), worker.health);
    worker.executor = std::make_unique<Executor>(id, executor.model.get(), worker.executor_transfer.get(), &scheduler_,
                                                 worker.copier.get(), worker.health, options_.max_pending_bytes,
                                                 limits.max_batch_tokens);
  }
  return absl::OkStatus();
}

absl::Status EngineImpl::StartThreads() {
  ForEachWorker([](Worker& worker) {
    worker.copier->Start();
    worker.executor->Start();
  });
  absl::Status status;
  ForEachWorker([&](Worker& worker) { status.Update(worker.executor->WaitUntilReady()); });
  return status;
}

std::vector<const Model*> EngineImpl::models() const {
  std::vector<const Model*> models;
  for (const auto& served : served_) models.push_back(&served->model.first());
  return models;
}

absl::StatusOr<const Served*> EngineImpl::FindServed(absl::string_view name) const {
  std::vector<std::string> names;
  for (const auto& served : served_) {
    if (served->info().name == name) return served.get();
    names.push_back(served->info().name);
  }
  if (!name.empty() || names.empty()) {
    return absl::NotFoundError(absl::StrCat("model: no model \"", name, "\"; this server has ", Names(names)));
  }
  if (names.size() == 1) return served_[0].get();
  return InvalidField("model", absl::StrCat("is empty, but this server has several: ", Names(names)));
}

const Served& EngineImpl::ServedOf(const Model* model) const {
  size_t i = 0;
  while (&served_[i]->model.first() != model) ++i;
  return *served_[i];
}

absl::StatusOr<const Model*> EngineImpl::FindModel(absl::string_view name) const {
  ASSIGN_OR_RETURN(const Served* served, FindServed(name));
  return &served->model.first();
}

std::vector<const Dataset*> EngineImpl::datasets() const {
  std::vector<const Dataset*> datasets;
  for (const std::unique_ptr<const Dataset>& dataset : datasets_) datasets.push_back(dataset.get());
  return datasets;
}

absl::StatusOr<const Dataset*> EngineImpl::FindDataset(absl::string_view name) const {
  std::vector<std::string> names;
  for (const std::unique_ptr<const Dataset>& dataset : datasets_) {
    if (dataset->name() == name) return dataset.get();
    names.push_back(dataset->name());
  }
  return absl::NotFoundError(absl::StrCat("name: no dataset \"", name, "\"; this server has ", Names(names)));
}

absl::StatusOr<CapturePlan> EngineImpl::Plan(CaptureRequest request) const {
  ASSIGN_OR_RETURN(const Served* served, FindServed(request.model));
  return MakeCapturePlan(std::move(request), served->model.first(), served->limits, datasets());
}

CaptureEstimate EngineImpl::Estimate(const CapturePlan& plan) const {
  CaptureEstimate estimate = plan.Estimate();
  const double seconds = scheduler_.SecondsPerTokenLayer(ServedOf(plan.model).id);
  if (seconds > 0) {
    estimate.time = absl::Seconds(seconds * static_cast<double>(estimate.tokens) * estimate.layers);
  }
  return estimate;
}

absl::StatusOr<std::shared_ptr<Capture>> EngineImpl::Start(CapturePlan plan, const ClientIdentity& client,
                                                           CaptureCallbacks callbacks) {
  const Served& served = ServedOf(plan.model);
  const int64_t first_sequence = plan.position.batch_sequence;
  ASSIGN_OR_RETURN(Scheduler::Admitted admitted,
                   scheduler_.Admit(served.id, std::move(plan), client, std::move(callbacks)));
  return std::make_shared<CaptureHandle>(&scheduler_, std::move(admitted), &served.info(), served.limits,
                                         first_sequence);
}

absl::StatusOr<ScorePlan> EngineImpl::PlanScore(ScoreRequest request) const {
  ASSIGN_OR_RETURN(const Served* served, FindServed(request.model));
  return MakeScorePlan(std::move(request), served->model.first(), served->limits, datasets());
}

absl::StatusOr<std::shared_ptr<Scoring>> EngineImpl::StartScore(ScorePlan plan, const ClientIdentity& client,
                                                                std::function<void()> on_ready) {
  const ModelId model = ServedOf(plan.model).id;
  const int64_t held_tokens = HeldTokens(plan);
  auto run = std::make_shared<ScoreRun>(std::make_shared<const ScorePlan>(std::move(plan)), std::move(on_ready));
  ASSIGN_OR_RETURN(const CaptureId id, scheduler_.AdmitScore(model, run, held_tokens, client));
  return std::make_shared<ScoringHandle>(&scheduler_, id, std::move(run));
}

absl::StatusOr<TopActivationsPlan> EngineImpl::PlanTopActivations(TopActivationsRequest request) const {
  std::vector<std::string> names;
  for (const auto& served : served_) {
    const std::vector<AttachedDictionary>& dictionaries = served->model.first().dictionaries();
    for (size_t i = 0; i < dictionaries.size(); ++i) {
      names.push_back(dictionaries[i].info.name);
      if (names.back() != request.dictionary) continue;
      return MakeTopActivationsPlan(std::move(request), served->model.first(), static_cast<int>(i), served->limits,
                                    datasets());
    }
  }
  return absl::NotFoundError(
      absl::StrCat("dictionary: no dictionary \"", request.dictionary, "\"; this server has ", Names(names)));
}

absl::StatusOr<std::shared_ptr<TopActivationsSearch>> EngineImpl::StartTopActivations(TopActivationsPlan plan,
                                                                                      const ClientIdentity& client,
                                                                                      std::function<void()> on_ready) {
  const ModelId model = ServedOf(plan.model).id;
  const int64_t held_tokens = plan.HeldTokens();
  auto run = std::make_shared<TopActivationsRun>(std::make_shared<const TopActivationsPlan>(std::move(plan)),
                                                 std::move(on_ready));
  ASSIGN_OR_RETURN(const CaptureId id, scheduler_.AdmitScore(model, run, held_tokens, client));
  return std::make_shared<SearchHandle>(&scheduler_, id, std::move(run));
}

EngineSnapshot EngineImpl::Snapshot() const {
  EngineSnapshot snapshot;
  scheduler_.Snapshot(&snapshot);
  for (size_t i = 0; i < served_.size(); ++i) {
    const Served& served = *served_[i];
    std::map<int, Copier::Count> delivered;
    std::set<std::string> devices;
    for (const ServedModel::Executor& executor : served.model.executors) {
      for (const std::string& device : DevicesOf(executor)) devices.insert(device);
      snapshot.models[i].replicas[static_cast<size_t>(executor.replica)].stages = executor.stages;
    }
    for (const Worker& worker : served.workers) {
      for (const auto& [hook_point, count] : worker.copier->delivered()) {
        delivered[hook_point].rows += count.rows;
        delivered[hook_point].bytes += count.bytes;
      }
    }
    for (const std::string& device : devices) snapshot.models[i].device_memory_bytes += DeviceMemoryBytes(device);
    for (const auto& [hook_point, count] : delivered) {
      snapshot.hook_points.push_back(
          {served.info().name, served.model.first().hook_points()[hook_point].name, count.rows, count.bytes});
    }
  }
  return snapshot;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options, std::vector<ServedModel> models,
                                                       std::vector<std::unique_ptr<const Dataset>> datasets,
                                                       std::function<void(absl::Status)> on_lost) {
  return CreateEngine(options, std::move(models), std::move(datasets), MakeStagesTransfer, std::move(on_lost));
}

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const EngineOptions& options, std::vector<ServedModel> models,
                                                     std::vector<std::unique_ptr<const Dataset>> datasets,
                                                     const TransferFactory& make_transfer,
                                                     std::function<void(absl::Status)> on_lost) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::set<std::string> names;
  std::string slab_device = "cpu";
  for (const ServedModel& served : models) {
    const Model* const model = &served.first();
    if (!names.insert(model->info().name).second) {
      return absl::InvalidArgumentError(absl::StrCat("two models are named \"", model->info().name, "\""));
    }
    for (const HookPoint& hook_point : model->hook_points().all()) {
      const int64_t row_bytes = hook_point.width * DtypeBytes(Dtype::kFloat32);
      if (row_bytes > options.slab_bytes) {
        return InvalidField("slab_bytes", absl::StrCat(options.slab_bytes, " is less than a row of ", hook_point.name,
                                                       " in model \"", model->info().name, "\", ", row_bytes));
      }
    }
    if (model->info().device != "cpu") slab_device = model->info().device;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<uint8_t> memory,
                   AllocateHostMemory(options.slab_bytes * options.slab_count, slab_device));
  auto engine = std::make_unique<EngineImpl>(options, std::move(memory), std::move(datasets), std::move(on_lost));
  for (ServedModel& model : models) RETURN_IF_ERROR(engine->Add(std::move(model), make_transfer));
  RETURN_IF_ERROR(engine->StartThreads());
  return engine;
}

}  // namespace hookline
