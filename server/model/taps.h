// The hook points that one forward pass has still to record: indices into the model's list, which is in the order of
// computation; kNoHookPoint is never wanted.
#ifndef HOOKLINE_SERVER_MODEL_TAPS_H_
#define HOOKLINE_SERVER_MODEL_TAPS_H_

#include <ATen/ATen.h>

#include <algorithm>
#include <initializer_list>

#include "absl/types/span.h"
#include "server/model/model.h"

namespace hookline {

class Taps {
 public:
  // `wanted`: ascending.
  Taps(const HookPoints& points, absl::Span<const int> wanted, Model::Tap tap)
      : points_(points), wanted_(wanted), tap_(tap) {}

  // Records `value`, (batch, positions, ...) or rows already, if it is wanted. Returns whether it was the last one,
  // after which nothing more is computed.
  bool operator()(int hook_point, const at::Tensor& value) {
    if (wanted_.empty() || wanted_.front() != hook_point) return wanted_.empty();
    wanted_.remove_prefix(1);
    tap_(hook_point, value.reshape({-1, points_[hook_point].width}));
    return wanted_.empty();
  }

  // Returns whether one of `hook_points` is to be recorded, or the pass goes on to `reader`, computed from them.
  bool Need(std::initializer_list<int> hook_points, int reader) const {
    return Reach(reader) || std::any_of(hook_points.begin(), hook_points.end(), [&](int hook_point) {
             return std::binary_search(wanted_.begin(), wanted_.end(), hook_point);
           });
  }

  // Returns whether the pass goes on to `hook_point`.
  bool Reach(int hook_point) const { return !wanted_.empty() && wanted_.back() >= hook_point; }

  // Returns whether the next one to record comes after `hook_point`.
  bool NextIsAfter(int hook_point) const { return !wanted_.empty() && wanted_.front() > hook_point; }

 private:
  const HookPoints& points_;
  absl::Span<const int> wanted_;
  Model::Tap tap_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TAPS_H_
