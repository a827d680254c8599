// An engine without a model: captures give synthetic rows in real slabs, as fast as slabs return to their windows.
#ifndef HOOKLINE_TESTS_SERVICE_FAKE_ENGINE_H_
#define HOOKLINE_TESTS_SERVICE_FAKE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/base/slab_pool.h"
#include "server/engine/engine.h"

namespace hookline {

class FakeCapture;

struct FakeEngineOptions {
  int64_t slab_bytes = int64_t{1} << 20;
  int64_t slab_count = 64;
  int64_t window_slabs = 8;
  int64_t width = 768;  // of each hook point
  // If this is false, slabs are sent as they are, which costs nothing.
  bool write_values = true;
  // Runs on the thread that gives a slab back to an open window, before the engine learns of it.
  std::function<void()> on_slab_return = [] {};
  std::vector<std::unique_ptr<const Dataset>> datasets;
};

// The engine has one model, `fake`, with the hook points `a` and `b`. A capture gives `max_activations` rows for each
// hook point that it names, one slab in a chunk, and alternates between the hook points; a streamed capture gives a row
// for each token. The float32 value at (row, column) is row + column / 1024.
class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(FakeEngineOptions options = {});
  ~FakeEngine() override;

  // Ends captures with `status` once they have given `rows` rows.
  void FailAfter(int64_t rows, absl::Status status);

  // Makes whatever a service calls throw, or only what takes a capture's events.
  enum class Throws { kNever, kAtOnce, kAfterTheFirstEvent };
  void Throw(Throws throws);

  // Makes Snapshot return this.
  void SetSnapshot(EngineSnapshot snapshot);

  const EngineOptions& options() const override { return engine_options_; }
  std::vector<const Model*> models() const override { return {model_.get()}; }
  absl::StatusOr<const Model*> FindModel(absl::string_view name) const override;
  std::vector<const Dataset*> datasets() const override;
  absl::StatusOr<const Dataset*> FindDataset(absl::string_view name) const override;
  absl::StatusOr<CapturePlan> Plan(CaptureRequest request) const override;
  CaptureEstimate Estimate(const CapturePlan& plan) const override;
  absl::StatusOr<std::shared_ptr<Capture>> Start(CapturePlan plan, const ClientIdentity& client,
                                                 CaptureCallbacks callbacks) override;
  std::vector<CaptureStatus> ListCaptures(const ClientIdentity& /*client*/) const override { return {}; }
  absl::Status StopCapture(int64_t /*id*/, const ClientIdentity& /*client*/) override {
    return absl::NotFoundError("no such capture");
  }
  // Scores need a model.
  absl::StatusOr<ScorePlan> PlanScore(ScoreRequest /*request*/) const override {
    return absl::UnimplementedError("the fake engine computes no scores");
  }
  absl::StatusOr<std::shared_ptr<Scoring>> StartScore(ScorePlan /*plan*/, const ClientIdentity& /*client*/,
                                                      std::function<void()> /*on_ready*/) override {
    return absl::UnimplementedError("the fake engine computes no scores");
  }
  absl::StatusOr<TopActivationsPlan> PlanTopActivations(TopActivationsRequest /*request*/) const override {
    return absl::UnimplementedError("the fake engine computes no latents");
  }
  absl::StatusOr<std::shared_ptr<TopActivationsSearch>> StartTopActivations(
      TopActivationsPlan /*plan*/, const ClientIdentity& /*client*/, std::function<void()> /*on_ready*/) override {
    return absl::UnimplementedError("the fake engine computes no latents");
  }
  EngineSnapshot Snapshot() const override;
  void Drain(absl::Time deadline) override;

  // All of these wait until the condition holds. They return false if that takes 20 seconds.
  bool WaitUntilSlabsAreBack();
  bool WaitUntilFilled(int64_t slabs);  // as many slabs hold rows
  bool WaitUntilRunning(int64_t captures);

  std::string last_address() const;
  // Counts the calls of Capture::AddSequences while there was no room.
  int64_t sequences_without_room() const;
  // Returns the longest duration that Capture::AddWireTime was given.
  absl::Duration longest_wire_time() const;

 private:
  void MaybeThrow() const;
  friend class FakeCapture;

  void Produce();
  // Makes the producer look at every capture.
  void Wake();

  const FakeEngineOptions fake_options_;
  EngineOptions engine_options_;
  std::unique_ptr<Model> model_;
  mutable absl::Mutex mutex_;
  bool work_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool past_deadline_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t fail_after_ ABSL_GUARDED_BY(mutex_) = -1;
  Throws throws_ ABSL_GUARDED_BY(mutex_) = Throws::kNever;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::optional<EngineSnapshot> snapshot_ ABSL_GUARDED_BY(mutex_);
  std::string last_address_ ABSL_GUARDED_BY(mutex_);
  int64_t sequences_without_room_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Duration longest_wire_time_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::weak_ptr<FakeCapture>> captures_ ABSL_GUARDED_BY(mutex_);
  int64_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<SlabPool> pool_;
  std::thread producer_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SERVICE_FAKE_ENGINE_H_
