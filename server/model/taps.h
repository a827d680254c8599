// The hook points that a forward pass still has to record or to replace, as indices into the model's list, which is in
// the order of computation. kNoHookPoint is never wanted.
#ifndef HOOKLINE_SERVER_MODEL_TAPS_H_
#define HOOKLINE_SERVER_MODEL_TAPS_H_

#include <ATen/ATen.h>

#include <algorithm>
#include <initializer_list>

#include "absl/types/span.h"
#include "server/model/model.h"

namespace hookline {

// The end of a pass: the last wanted hook point, or the input of the unembedding.
enum class PassEnd { kLastHookPoint, kLogits };

class Taps {
 public:
  // Receives the rows (batch * positions, width) of a hook point. Returns replacement rows of the same sizes and type,
  // or an undefined tensor to leave the rows as they are.
  using Visit = absl::FunctionRef<at::Tensor(int hook_point, const at::Tensor& rows)>;

  // `wanted` is ascending.
  Taps(const HookPoints& points, absl::Span<const int> wanted, PassEnd end, Visit visit)
      : points_(points), wanted_(wanted), end_(end), visit_(visit) {}

  // Hands out `value`, (batch, positions, ...) or already rows, if it is wanted, and replaces it by the answer, if
  // there is one. Returns true if it was the last wanted hook point, after which nothing more is computed.
  bool operator()(int hook_point, at::Tensor& value) {
    if (wanted_.empty() || wanted_.front() != hook_point) return Ended();
    wanted_.remove_prefix(1);
    const at::Tensor replacement = visit_(hook_point, value.reshape({-1, points_[hook_point].width}));
    if (replacement.defined()) value = replacement.reshape(value.sizes());
    return Ended();
  }

  // The same for a hook point whose value is only observed (HookPoint::observation): an answer has no effect.
  bool Observe(int hook_point, at::Tensor value) { return (*this)(hook_point, value); }

  // Returns whether `hook_point` is the next one to record or to replace.
  bool IsNext(int hook_point) const { return !wanted_.empty() && wanted_.front() == hook_point; }

  // Returns whether one of `hook_points` is wanted, or the pass goes on to `reader`, which is computed from them.
  bool Need(std::initializer_list<int> hook_points, int reader) const {
    return Reach(reader) ||
           std::any_of(hook_points.begin(), hook_points.end(), [&](int hook_point) { return Wants(hook_point); });
  }

  // Returns whether `hook_point` is still wanted.
  bool Wants(int hook_point) const { return std::binary_search(wanted_.begin(), wanted_.end(), hook_point); }

  // Returns whether the pass goes on to `hook_point`.
  bool Reach(int hook_point) const {
    return end_ == PassEnd::kLogits || (!wanted_.empty() && wanted_.back() >= hook_point);
  }

  // Returns whether the next wanted hook point comes after `hook_point`.
  bool NextIsAfter(int hook_point) const { return !wanted_.empty() && wanted_.front() > hook_point; }

 private:
  bool Ended() const { return wanted_.empty() && end_ == PassEnd::kLastHookPoint; }

  const HookPoints& points_;
  absl::Span<const int> wanted_;
  const PassEnd end_;
  Visit visit_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TAPS_H_
