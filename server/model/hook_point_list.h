// Collects a model's hook points while its parts are built, in the order in which a pass computes them.
//
//   HookPointList list;
//   list.Enter("blocks.0.", 0);
//   const int query = list.Add("attn.hook_q", 768, "The query projection.");    // the part keeps the index
//   HookPoints points = std::move(list).Finish();
#ifndef HOOKLINE_SERVER_MODEL_HOOK_POINT_LIST_H_
#define HOOKLINE_SERVER_MODEL_HOOK_POINT_LIST_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/model/hook_points.h"

namespace hookline {

// The index of a hook point that a part does not have.
constexpr int kNoHookPoint = -1;

class HookPointList {
 public:
  // Makes the hook points that are added from now on belong to `layer` and have `prefix` before their names.
  void Enter(std::string prefix, int layer) {
    prefix_ = std::move(prefix);
    layer_ = layer;
  }

  // Adds the next hook point and returns its index.
  int Add(absl::string_view name, int64_t width, std::string description) {
    points_.push_back({absl::StrCat(prefix_, name), width, layer_, std::move(description), /*heads=*/0,
                       /*observation=*/false, /*fingerprint=*/{}});
    return static_cast<int>(points_.size()) - 1;
  }

  // Adds a hook point whose values belong to `heads` heads, one after the other.
  int AddHeads(absl::string_view name, int64_t heads, int64_t width, std::string description) {
    const int index = Add(name, width, std::move(description));
    points_.back().heads = static_cast<int>(heads);
    return index;
  }

  // Marks hook point `index` as one whose value nothing later depends on.
  void Observation(int index) { points_[static_cast<size_t>(index)].observation = true; }

  // Adds another name for hook point `index`.
  void Alias(absl::string_view name, int index) { aliases_[absl::StrCat(prefix_, name)] = index; }

  HookPoints Finish() && { return HookPoints(std::move(points_), std::move(aliases_)); }

 private:
  std::string prefix_;
  int layer_ = -1;
  std::vector<HookPoint> points_;
  absl::flat_hash_map<std::string, int> aliases_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_HOOK_POINT_LIST_H_
