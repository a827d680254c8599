#include "tests/service/fake_engine.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/status.h"
#include "tests/service/described_model.h"

namespace hookline {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
// A streamed capture has no room while more tokens than this wait.
constexpr int64_t kRoomTokens = 64;
constexpr char kThrown[] = "thrown by the fake engine";

}  // namespace

// The engine's mutex guards all members that are not const.
class FakeCapture final : public Capture {
 public:
  FakeCapture(FakeEngine* engine, CapturePlan plan, CaptureCallbacks callbacks, std::unique_ptr<SlabWindow> window)
      : engine_(engine), plan_(std::move(plan)), callbacks_(std::move(callbacks)), window_(std::move(window)) {
    rows_.resize(plan_.hook_points.size());
  }

  ~FakeCapture() override { FakeCapture::Cancel(); }

  std::optional<CaptureEvent> Next() override {
    absl::MutexLock lock(&engine_->mutex_);
    if (events_.empty()) {
      hungry_ = true;
      return std::nullopt;
    }
    if (taken_any_ && engine_->throws_ == FakeEngine::Throws::kAfterTheFirstEvent) {
      throw std::out_of_range(kThrown);
    }
    taken_any_ = true;
    CaptureEvent event = std::move(events_.front());
    events_.pop_front();
    if (std::holds_alternative<CaptureEnded>(event)) --engine_->running_;
    return event;
  }

  absl::StatusOr<bool> AddSequences(TokenBatch batch) override {
    absl::MutexLock lock(&engine_->mutex_);
    if (batch.empty()) {
      absl::Status status = InvalidField("tokens.sequences", "empty; at least one sequence is needed");
      if (!ended_) End(status, StopReason::kError);
      engine_->work_ = true;
      return status;
    }
    if (wants_room_) ++engine_->sequences_without_room_;
    tokens_ += batch.tokens();
    engine_->work_ = true;
    wants_room_ = tokens_ - Produced() > kRoomTokens;
    return !wants_room_;
  }

  void FinishSource() override {
    absl::MutexLock lock(&engine_->mutex_);
    source_finished_ = true;
    engine_->work_ = true;
  }

  void Cancel() override {
    std::deque<CaptureEvent> dropped;
    std::unique_ptr<SlabWindow> window;
    {
      absl::MutexLock lock(&engine_->mutex_);
      if (!cancelled_) {
        cancelled_ = true;
        const bool end_taken = ended_ && (events_.empty() || !std::holds_alternative<CaptureEnded>(events_.back()));
        if (!end_taken) --engine_->running_;
        ended_ = true;
      }
      dropped.swap(events_);
      window = std::move(window_);
      auto no_callback = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine_->mutex_) { return !in_callback_; };
      engine_->mutex_.Await(absl::Condition(&no_callback));
    }
  }

  void AddWireTime(absl::Duration duration) override {
    absl::MutexLock lock(&engine_->mutex_);
    wire_time_ += duration;
    engine_->longest_wire_time_ = std::max(engine_->longest_wire_time_, duration);
  }

  // Fills the room in the window, and makes the callbacks that are due. Runs on the engine's thread.
  void Produce() {
    bool ready = false;
    bool room = false;
    {
      absl::MutexLock lock(&engine_->mutex_);
      Fill();
      if (cancelled_) return;
      ready = hungry_ && !events_.empty();
      if (ready) hungry_ = false;
      room = wants_room_ && tokens_ - Produced() <= kRoomTokens;
      if (room) wants_room_ = false;
      in_callback_ = true;
    }
    if (ready) callbacks_.on_ready();
    if (room) callbacks_.on_source_room();
    absl::MutexLock lock(&engine_->mutex_);
    in_callback_ = false;
  }

 private:
  int64_t Produced() const { return *std::min_element(rows_.begin(), rows_.end()); }

  void Fill() ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine_->mutex_) {
    if (ended_) return;
    if (!started_) {
      started_ = true;
      CaptureStarted started;
      started.model = "fake";
      for (const CapturePlan::HookPoint& hook_point : plan_.hook_points) {
        started.hook_points.push_back({hook_point.name, hook_point.width, hook_point.budget, false});
      }
      started.dtype = plan_.dtype;
      started.max_message_bytes = engine_->fake_options_.slab_bytes;
      started.window_bytes = engine_->fake_options_.window_slabs * engine_->fake_options_.slab_bytes;
      events_.emplace_back(std::move(started));
    }
    const int64_t wanted = plan_.streams ? tokens_ : plan_.max_budget;
    while (Produced() < wanted) {
      if (engine_->fail_after_ >= 0 && Produced() >= engine_->fail_after_) {
        return End(engine_->failure_, StopReason::kError);
      }
      if (engine_->past_deadline_) break;
      SlabRef slab = window_->Take();
      if (!slab) return;
      Emit(std::move(slab), wanted);
    }
    if (Produced() >= wanted && (!plan_.streams || source_finished_)) {
      End(absl::OkStatus(), plan_.streams ? StopReason::kSourceEnded : StopReason::kBudget);
    } else if (engine_->past_deadline_) {
      End(absl::UnavailableError("the server shuts down"), StopReason::kShuttingDown);
    }
  }

  void Emit(SlabRef slab, int64_t wanted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine_->mutex_) {
    const int64_t width = engine_->fake_options_.width;
    const int64_t row_bytes = width * DtypeBytes(plan_.dtype);
    const auto least = std::min_element(rows_.begin(), rows_.end());
    Chunk chunk;
    chunk.hook_point = static_cast<int>(least - rows_.begin());
    chunk.first_row = *least;
    // The rows leave room for the message's other fields, so that a message is no larger than a slab.
    chunk.rows = std::min(wanted - *least, (slab.bytes() - 256) / row_bytes);
    *least += chunk.rows;
    if (plan_.dtype == Dtype::kFloat32 && engine_->fake_options_.write_values) {
      auto* values = reinterpret_cast<float*>(slab.data());
      for (int64_t row = 0; row < chunk.rows; ++row) {
        for (int64_t column = 0; column < width; ++column) {
          values[row * width + column] =
              static_cast<float>(chunk.first_row + row) + static_cast<float>(column) / 1024.0F;
        }
      }
    }
    if (plan_.provenance) {
      auto provenance = std::make_shared<Provenance>();
      for (int64_t row = chunk.first_row; row < *least; ++row) {
        provenance->sequence.push_back(row / 10);
        provenance->position.push_back(static_cast<int32_t>(row % 10));
        provenance->token_id.push_back(static_cast<uint32_t>(row % 1000));
      }
      chunk.provenance = std::move(provenance);
    }
    chunk.resume_token = absl::StrCat("after ", *least);
    chunk.data.push_back({std::move(slab), 0, chunk.rows * row_bytes});
    events_.emplace_back(std::move(chunk));
  }

  void End(absl::Status status, StopReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine_->mutex_) {
    CaptureEnded ended;
    ended.status = std::move(status);
    ended.stop_reason = reason;
    for (int64_t rows : rows_) {
      ended.hook_points.emplace_back();
      ended.hook_points.back().rows = rows;
    }
    ended.tokens = tokens_;
    ended.wire_time = wire_time_;
    ended.resume_token = "end";
    events_.emplace_back(std::move(ended));
    ended_ = true;
  }

  FakeEngine* const engine_;
  const CapturePlan plan_;
  const CaptureCallbacks callbacks_;
  std::unique_ptr<SlabWindow> window_;
  std::deque<CaptureEvent> events_;
  std::vector<int64_t> rows_;  // that were made, by hook point
  int64_t tokens_ = 0;
  absl::Duration wire_time_;
  bool taken_any_ = false;
  bool started_ = false;
  bool ended_ = false;
  bool hungry_ = false;
  bool wants_room_ = false;
  bool source_finished_ = false;
  bool cancelled_ = false;
  bool in_callback_ = false;
};

FakeEngine::FakeEngine(FakeEngineOptions options)
    : fake_options_(std::move(options)), model_(NewDescribedModel(fake_options_.width)) {
  const int64_t bytes = fake_options_.slab_bytes * fake_options_.slab_count;
  std::shared_ptr<uint8_t> memory(static_cast<uint8_t*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)),
                                  &std::free);
  pool_ = std::make_unique<SlabPool>(std::move(memory), fake_options_.slab_bytes, fake_options_.slab_count,
                                     /*on_free=*/[this] { Wake(); });
  producer_ = std::thread([this] { Produce(); });
}

FakeEngine::~FakeEngine() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  producer_.join();
}

void FakeEngine::Wake() {
  absl::MutexLock lock(&mutex_);
  work_ = true;
}

void FakeEngine::Produce() {
  while (true) {
    std::vector<std::shared_ptr<FakeCapture>> captures;
    {
      absl::MutexLock lock(&mutex_);
      auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return work_ || stop_; };
      mutex_.Await(absl::Condition(&wake));
      if (stop_) return;
      work_ = false;
      auto gone = [](const std::weak_ptr<FakeCapture>& capture) { return capture.expired(); };
      captures_.erase(std::remove_if(captures_.begin(), captures_.end(), gone), captures_.end());
      for (const auto& capture : captures_) {
        if (auto alive = capture.lock()) captures.push_back(std::move(alive));
      }
    }
    for (const auto& capture : captures) capture->Produce();
  }
}

void FakeEngine::FailAfter(int64_t rows, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_after_ = rows;
  failure_ = std::move(status);
}

void FakeEngine::Throw(Throws throws) {
  absl::MutexLock lock(&mutex_);
  throws_ = throws;
}

void FakeEngine::MaybeThrow() const {
  absl::MutexLock lock(&mutex_);
  if (throws_ == Throws::kAtOnce) throw std::out_of_range(kThrown);
}

void FakeEngine::SetSnapshot(EngineSnapshot snapshot) {
  absl::MutexLock lock(&mutex_);
  snapshot_ = std::move(snapshot);
}

absl::StatusOr<const Model*> FakeEngine::FindModel(absl::string_view name) const {
  MaybeThrow();
  if (name.empty() || name == "fake") return model_.get();
  return absl::NotFoundError(absl::StrCat("no model `", name, "`; there is `fake`"));
}

std::vector<const Dataset*> FakeEngine::datasets() const {
  std::vector<const Dataset*> datasets;
  for (const auto& dataset : fake_options_.datasets) datasets.push_back(dataset.get());
  return datasets;
}

absl::StatusOr<const Dataset*> FakeEngine::FindDataset(absl::string_view name) const {
  for (const auto& dataset : fake_options_.datasets) {
    if (dataset->name() == name) return dataset.get();
  }
  return absl::NotFoundError(absl::StrCat("no dataset `", name, "`"));
}

absl::StatusOr<CapturePlan> FakeEngine::Plan(CaptureRequest request) const {
  MaybeThrow();
  CapturePlan plan;
  ASSIGN_OR_RETURN(std::vector<ResolvedHookPoint> resolved, model_->hook_points().Resolve(request.hook_points, 4096));
  if (std::holds_alternative<std::monostate>(request.source)) {
    return InvalidField("source", "none given; give tokens, dataset or feed");
  }
  plan.model = model_.get();
  plan.dtype = request.dtype;
  plan.encoding = request.encoding;
  plan.provenance = request.provenance;
  plan.max_budget = request.max_activations.value_or(0);
  for (ResolvedHookPoint& point : resolved) {
    CapturePlan::HookPoint& hook_point = plan.hook_points.emplace_back();
    hook_point.index = point.index;
    hook_point.name = std::move(point.name);
    hook_point.width = fake_options_.width;
    hook_point.layout = {request.dtype, hook_point.width};
    hook_point.row_bytes = hook_point.layout.bytes();
    hook_point.budget = plan.max_budget;
  }
  plan.streams = std::holds_alternative<StreamedSource>(request.source);
  return plan;
}

absl::StatusOr<std::shared_ptr<Capture>> FakeEngine::Start(CapturePlan plan, const ClientIdentity& client,
                                                           CaptureCallbacks callbacks) {
  std::unique_ptr<SlabWindow> window = pool_->TryReserve(fake_options_.window_slabs, /*on_return=*/[this] {
    fake_options_.on_slab_return();
    Wake();
  });
  if (window == nullptr) return absl::ResourceExhaustedError("no window is free");
  absl::MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("the server shuts down");
  last_address_ = client.name;
  auto capture = std::make_shared<FakeCapture>(this, std::move(plan), std::move(callbacks), std::move(window));
  captures_.push_back(capture);
  ++running_;
  work_ = true;
  return capture;
}

CaptureEstimate FakeEngine::Estimate(const CapturePlan& plan) const {
  CaptureEstimate estimate;
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) {
    estimate.hook_points.push_back({hook_point.name, hook_point.budget, hook_point.budget * hook_point.row_bytes});
    estimate.bytes += estimate.hook_points.back().bytes;
  }
  estimate.sequences = 3;
  estimate.tokens = 30;
  estimate.time = absl::Milliseconds(1500);
  return estimate;
}

EngineSnapshot FakeEngine::Snapshot() const {
  const SlabPool::Counts counts = pool_->counts();
  absl::MutexLock lock(&mutex_);
  if (snapshot_.has_value()) return *snapshot_;
  EngineSnapshot snapshot;
  snapshot.slabs_free = counts.free;
  snapshot.slabs_reserved = counts.reserved;
  snapshot.slabs_filled = counts.filled;
  snapshot.captures_running = running_;
  return snapshot;
}

void FakeEngine::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
  if (mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline)) return;
  past_deadline_ = true;
  work_ = true;
  mutex_.Await(absl::Condition(&idle));
}

bool FakeEngine::WaitUntilSlabsAreBack() {
  absl::MutexLock lock(&mutex_);
  auto back = [this] { return pool_->counts().free == fake_options_.slab_count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&back), kPatience);
}

bool FakeEngine::WaitUntilFilled(int64_t slabs) {
  absl::MutexLock lock(&mutex_);
  auto filled = [this, slabs] { return pool_->counts().filled == slabs; };
  return mutex_.AwaitWithTimeout(absl::Condition(&filled), kPatience);
}

bool FakeEngine::WaitUntilRunning(int64_t captures) {
  absl::MutexLock lock(&mutex_);
  auto running = [this, captures]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == captures; };
  return mutex_.AwaitWithTimeout(absl::Condition(&running), kPatience);
}

std::string FakeEngine::last_address() const {
  absl::MutexLock lock(&mutex_);
  return last_address_;
}

int64_t FakeEngine::sequences_without_room() const {
  absl::MutexLock lock(&mutex_);
  return sequences_without_room_;
}

absl::Duration FakeEngine::longest_wire_time() const {
  absl::MutexLock lock(&mutex_);
  return longest_wire_time_;
}

}  // namespace hookline
