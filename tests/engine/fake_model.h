// A model whose rows are easy to compute: value j of a row at hook point h is
//   1000 h + id + position / 1024 + j / 4     (exact in float32)
// It can be made slow, can be made to fail, and records what it was asked for.
#ifndef HOOKLINE_TESTS_ENGINE_FAKE_MODEL_H_
#define HOOKLINE_TESTS_ENGINE_FAKE_MODEL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/model/model.h"

namespace hookline {

class FakeModel : public Model {
 public:
  static constexpr int kVocabulary = 512;
  static constexpr int kContext = 256;

  // The model has the hook points `hook_embed` (width 4, layer -1) and `blocks.i.hook_resid_post` (width 8 + i) for
  // `layers` blocks.
  explicit FakeModel(int layers = 3, std::string name = "fake");

  absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int64_t> lengths,
                       absl::Span<const int> hook_points, Tap tap) override;
  int64_t blocks_executed() const override { return blocks_executed_; }

  static float Value(int hook_point, uint32_t id, int64_t position, int64_t j) {
    return static_cast<float>(1000 * hook_point) + static_cast<float>(id) + static_cast<float>(position) / 1024 +
           static_cast<float>(j) / 4;
  }

  // From Close on, Forward waits until Open. WaitUntilBlocked returns when a Forward waits.
  void Close();
  void Open();
  void WaitUntilBlocked();
  bool is_blocked() const;

  // Forward returns `status` if one of its tokens is `id`.
  void FailOn(uint32_t id, absl::Status status);
  // Forward returns RESOURCE_EXHAUSTED for batches of more than `sequences` sequences.
  void FitOnly(int64_t sequences);
  void NeedEqualLengths() { info_.mixes_lengths = false; }

  struct Pass {
    int64_t sequences = 0;
    int64_t positions = 0;
    std::vector<int> hook_points;
  };
  std::vector<Pass> passes() const;
  void ForgetPasses();

 private:
  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool blocked_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<std::pair<uint32_t, absl::Status>> fail_on_ ABSL_GUARDED_BY(mutex_);
  int64_t fit_only_ ABSL_GUARDED_BY(mutex_) = 1 << 30;
  std::vector<Pass> passes_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int64_t> blocks_executed_{0};
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_FAKE_MODEL_H_
