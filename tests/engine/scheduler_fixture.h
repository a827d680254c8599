// Runs the scheduler by itself: without threads, without a device, and with a clock that stands still.
#ifndef HOOKLINE_TESTS_ENGINE_SCHEDULER_FIXTURE_H_
#define HOOKLINE_TESTS_ENGINE_SCHEDULER_FIXTURE_H_

#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "server/capture/plan.h"
#include "server/engine/scheduler.h"
#include "tests/engine/fake_model.h"
#include "tests/support/fake_clock.h"
#include "tests/support/tokens.h"

namespace hookline {

inline constexpr absl::Duration kDelay = absl::Milliseconds(8);

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() {
    options_.slab_bytes = 4096;
    options_.slab_count = 16;
    options_.window_slabs = 4;
    options_.max_batch_tokens = 64;
    options_.max_batch_delay = kDelay;
    // Most tests have one client; fairness_test.cc tests what clients may have.
    options_.default_quotas.captures = options_.default_quotas.waiting = 64;
    options_.default_quotas.slabs = 16;
    Create();
  }

  // Makes a scheduler with `options_`.
  void Create() {
    const size_t bytes = static_cast<size_t>(options_.slab_count * options_.slab_bytes);
    std::shared_ptr<uint8_t> memory(static_cast<uint8_t*>(std::aligned_alloc(4096, bytes)), std::free);
    scheduler_ = std::make_unique<Scheduler>(options_, std::move(memory), &clock_);
    ModelSetup setup;
    setup.info = &model_.info();
    setup.max_batch_tokens = options_.max_batch_tokens;
    for (int i = 0; i < replicas_; ++i) {
      setup.executors.push_back({i, {"cpu"}, [this, i](CaptureId id) {
                                   room_.push_back(id);
                                   resumed_.push_back(i);
                                 }});
    }
    model_id_ = scheduler_->AddModel(std::move(setup));
  }

  CapturePlan Plan(decltype(CaptureRequest::source) source) {
    CaptureRequest request;
    request.hook_points = {"hook_embed"};
    request.source = std::move(source);
    request.max_message_bytes = 16384;
    absl::StatusOr<CapturePlan> plan =
        MakeCapturePlan(std::move(request), model_, LimitsFor(options_, model_.info()), /*datasets=*/{});
    EXPECT_TRUE(plan.ok()) << plan.status();
    return *std::move(plan);
  }
  static TokenBatch Sequence(size_t length) { return Tokens({std::vector<uint32_t>(length, 1)}); }

  Scheduler::Admitted Admit(CapturePlan plan, const ClientIdentity& client = "test", CaptureCallbacks callbacks = {}) {
    auto admitted = scheduler_->Admit(model_id_, std::move(plan), client, std::move(callbacks));
    EXPECT_TRUE(admitted.ok()) << admitted.status();
    return *std::move(admitted);
  }

  ExecutorId Executor(int index = 0) const { return {model_id_, index}; }
  std::optional<Batch> NextBatch(int executor = 0) {
    return scheduler_->TryNextBatch(Executor(executor), &look_again_);
  }

  // Plans the batch: each member gets rows, of which `staged_bytes` wait for slabs.
  void Plan(Batch& batch, int executor = 0, int64_t staged_bytes = 0) {
    for (Batch::Member& member : batch.members) {
      member.has_rows = true;
      member.staged_bytes = staged_bytes;
    }
    scheduler_->Planned(Executor(executor), batch);
  }

  // Reports a batch as an executor and a copier would whose work takes no time.
  void Run(Batch& batch, int executor = 0) {
    Plan(batch, executor);
    LaunchedPass launched;
    ComputedBatch computed;
    for (Batch::Member& member : batch.members) {
      LaunchedPass::Share share;
      share.capture = member.recipient.capture;
      launched.shares.push_back(share);
      computed.captures.push_back(member.recipient.capture);
    }
    launched.tokens = launched.positions = computed.tokens = 1;
    scheduler_->Launched(Executor(executor), {launched});
    scheduler_->Computed(Executor(executor), computed);
  }
  void Deliver(const Batch& batch) {
    for (const Batch::Member& member : batch.members) {
      scheduler_->Delivered(member.recipient.capture, {member.turn, absl::ZeroDuration(), /*has_gap=*/false});
    }
  }

  static bool HasEnded(const Scheduler::Admitted& admitted) {
    while (std::optional<CaptureEvent> event = admitted.events->Next()) {
      if (std::holds_alternative<CaptureEnded>(*event)) return true;
    }
    return false;
  }

  EngineOptions options_;
  FakeClock clock_;
  FakeModel model_;
  int replicas_ = 1;
  std::vector<CaptureId> room_;
  std::vector<int> resumed_;  // the executor of each entry in room_
  std::unique_ptr<Scheduler> scheduler_;
  ModelId model_id_{};
  absl::Time look_again_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_SCHEDULER_FIXTURE_H_
