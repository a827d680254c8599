#include "tests/engine/fake_model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline {

FakeModel::FakeModel(int layers, std::string name) {
  info_.fingerprint = absl::StrCat("fingerprint of ", name);
  info_.name = std::move(name);
  info_.architecture = "fake";
  info_.layers = layers;
  info_.width = 8;
  info_.context_length = kContext;
  info_.vocabulary_size = kVocabulary;
  info_.device = "cpu";
  std::vector<HookPoint> points = {{"hook_embed", 4, -1, "An embedding."}};
  for (int i = 0; i < layers; ++i) {
    points.push_back({absl::StrCat("blocks.", i, ".hook_resid_post"), 8 + i, i, "A block's output."});
  }
  hook_points_ = HookPoints(std::move(points));
}

absl::Status FakeModel::Forward(const at::Tensor& token_ids, absl::Span<const int64_t> /*lengths*/,
                                absl::Span<const int> hook_points, Tap tap) {
  const int64_t batch = token_ids.size(0);
  const int64_t positions = token_ids.size(1);
  const int64_t* ids = token_ids.data_ptr<int64_t>();
  {
    absl::MutexLock lock(&mutex_);
    passes_.push_back({batch, positions, {hook_points.begin(), hook_points.end()}});
    blocked_ = closed_;
    mutex_.Await(absl::Condition(
        +[](bool* closed) { return !*closed; }, &closed_));
    blocked_ = false;
    if (batch > fit_only_) return absl::ResourceExhaustedError("the fake device is too small for this batch");
    if (fail_on_.has_value() && std::count(ids, ids + batch * positions, fail_on_->first) != 0) {
      return fail_on_->second;
    }
  }
  for (int hook_point : hook_points) {
    blocks_executed_ += hook_point > 0 ? 1 : 0;
    const int64_t width = hook_points_[hook_point].width;
    at::Tensor value = at::empty({batch * positions, width}, at::kFloat);
    float* out = value.data_ptr<float>();
    for (int64_t row = 0; row < batch * positions; ++row) {
      for (int64_t j = 0; j < width; ++j) {
        *out++ = Value(hook_point, static_cast<uint32_t>(ids[row]), row % positions, j);
      }
    }
    tap(hook_point, value);
  }
  return absl::OkStatus();
}

void FakeModel::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

void FakeModel::Open() {
  absl::MutexLock lock(&mutex_);
  closed_ = false;
}

void FakeModel::WaitUntilBlocked() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&blocked_));
}

bool FakeModel::is_blocked() const {
  absl::MutexLock lock(&mutex_);
  return blocked_;
}

void FakeModel::FailOn(uint32_t id, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_on_.emplace(id, std::move(status));
}

void FakeModel::FitOnly(int64_t sequences) {
  absl::MutexLock lock(&mutex_);
  fit_only_ = sequences;
}

void FakeModel::ForgetPasses() {
  absl::MutexLock lock(&mutex_);
  passes_.clear();
}

std::vector<FakeModel::Pass> FakeModel::passes() const {
  absl::MutexLock lock(&mutex_);
  return passes_;
}

}  // namespace hookline
