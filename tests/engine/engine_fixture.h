// An engine on a FakeModel whose copies end late.
#ifndef HOOKLINE_TESTS_ENGINE_ENGINE_FIXTURE_H_
#define HOOKLINE_TESTS_ENGINE_ENGINE_FIXTURE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/engine/create.h"
#include "tests/engine/collector.h"
#include "tests/engine/fake_model.h"
#include "tests/engine/late_transfer.h"
#include "tests/support/tokens.h"

namespace hookline {

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    options_.slab_bytes = 4096;
    options_.slab_count = 64;
    options_.window_slabs = 4;
    options_.max_batch_tokens = 64;
    options_.max_batch_delay = absl::ZeroDuration();
    // Here one client may have everything; fairness_test.cc has several clients.
    options_.default_quotas.captures = options_.default_quotas.waiting = 64;
    options_.default_quotas.slabs = int64_t{1} << 20;
  }
  ~EngineTest() override {
    if (engine_ == nullptr) return;
    ExpectAllSlabsBack();
  }

  void Create(std::vector<std::unique_ptr<const Dataset>> datasets = {}) {
    std::vector<ServedModel> models(1);
    replica_models_.clear();
    for (int replica = 0; replica < replicas_; ++replica) {
      auto model = std::make_unique<FakeModel>();
      replica_models_.push_back(model.get());
      models[0].executors.push_back({std::move(model), replica, {{"cpu", 0, 3, 0}}});
    }
    model_ = replica_models_[0];
    uint64_t seed = 7;
    auto engine = CreateEngine(
        options_, std::move(models), std::move(datasets),
        [&](const std::vector<std::string>&) -> absl::StatusOr<std::unique_ptr<Transfer>> {
          return make_transfer_ ? make_transfer_() : MakeLateTransfer(seed++);
        },
        [this](const absl::Status&) { ++told_; });
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  absl::StatusOr<CaptureEstimate> Estimate(CaptureRequest request) const {
    const absl::StatusOr<CapturePlan> plan = engine_->Plan(std::move(request));
    if (!plan.ok()) return plan.status();
    return engine_->Estimate(*plan);
  }

  void ExpectAllSlabsBack() {
    engine_->Drain(absl::Now() + absl::Seconds(20));
    const EngineSnapshot snapshot = engine_->Snapshot();
    EXPECT_EQ(snapshot.slabs_free, options_.slab_count);
    EXPECT_EQ(snapshot.captures_running, 0);
    EXPECT_EQ(snapshot.captures_queued, 0);
  }

  static std::vector<std::vector<uint32_t>> Sequences(const std::vector<int>& lengths, uint32_t seed = 1) {
    std::vector<std::vector<uint32_t>> sequences;
    for (int length : lengths) {
      std::vector<uint32_t>& ids = sequences.emplace_back();
      for (int t = 0; t < length; ++t) ids.push_back((seed = seed * 1664525 + 1013904223) >> 24);
    }
    return sequences;
  }

  static CaptureRequest Request(std::vector<std::string> hook_points,
                                const std::vector<std::vector<uint32_t>>& sequences) {
    CaptureRequest request;
    request.hook_points = std::move(hook_points);
    request.source = Tokens(sequences);
    request.max_message_bytes = 16384;
    request.provenance = true;
    return request;
  }

  // Returns the rows that `request` must give if its sequences are `sequences`.
  std::vector<Collected::Rows> Expected(const CaptureRequest& request, const std::vector<std::string>& names,
                                        const std::vector<std::vector<uint32_t>>& sequences,
                                        int64_t first_sequence = 0) {
    std::map<std::string, int64_t> budgets;
    for (const std::string& name : names) {
      const auto own = request.max_activations_by_hook_point.find(name);
      budgets[name] = own != request.max_activations_by_hook_point.end()
                          ? own->second
                          : request.max_activations.value_or(options_.max_rows);
    }
    return Reference(*model_, names, sequences, budgets, request.selection, first_sequence);
  }

  static void ExpectSameRows(const std::vector<Collected::Rows>& rows, const std::vector<Collected::Rows>& expected) {
    ASSERT_EQ(rows.size(), expected.size());
    for (size_t h = 0; h < rows.size(); ++h) {
      EXPECT_EQ(rows[h].values, expected[h].values) << "hook point " << h;
      EXPECT_EQ(rows[h].sequence, expected[h].sequence) << "hook point " << h;
      EXPECT_EQ(rows[h].position, expected[h].position) << "hook point " << h;
      EXPECT_EQ(rows[h].token_id, expected[h].token_id) << "hook point " << h;
    }
  }

  EngineOptions options_;
  std::unique_ptr<Engine> engine_;
  int replicas_ = 1;
  std::function<std::unique_ptr<Transfer>()> make_transfer_;  // makes these instead of late ones
  FakeModel* model_ = nullptr;                                // of the first replica
  std::vector<FakeModel*> replica_models_;
  std::atomic<int> told_{0};  // how often the engine reported the loss of the last replica
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_ENGINE_FIXTURE_H_
