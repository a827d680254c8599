// Hook points: the named tensors of a forward pass, and how requests name them.
//
//   HookPoints points = ...;                     // a model's
//   auto resolved = points.Resolve({"blocks.*.hook_resid_post", "hook_embed"});
#ifndef HOOKLINE_SERVER_MODEL_HOOK_POINTS_H_
#define HOOKLINE_SERVER_MODEL_HOOK_POINTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline {

// One tensor that can be captured.
struct HookPoint {
  std::string name;         // as in TransformerLens, e.g. "blocks.3.hook_resid_post"
  int64_t width = 0;        // values in a row, heads flattened, head 0 first
  int layer = 0;            // block from 0; -1 before the first, the number of layers after the last
  std::string description;  // one sentence
  int heads = 0;            // the heads into which `width` is divided; 0: none
  // True if nothing later reads the value, so that replacing it would have no effect.
  bool observation = false;
  std::string fingerprint = {};  // of the dictionary that computes it; empty if the model does
};

// A hook point as a request chose it.
struct ResolvedHookPoint {
  int index = 0;     // index into HookPoints::all()
  std::string name;  // the name that chunks carry: the full one, or the alias that was asked for
};

// A model's hook points, in the order in which the forward pass computes them. Immutable once shared.
class HookPoints {
 public:
  HookPoints() = default;

  // Names must be unique. `aliases` maps other accepted names to indices into `points`; wildcards do not match them.
  // `refused` has names that users might expect to be hook points, each with the reason why it is not one; the reason
  // completes the sentence that begins with the name.
  explicit HookPoints(std::vector<HookPoint> points, absl::flat_hash_map<std::string, int> aliases = {},
                      absl::flat_hash_map<std::string, std::string> refused = {});

  const std::vector<HookPoint>& all() const { return points_; }
  const HookPoint& operator[](int index) const { return points_[index]; }
  int size() const { return static_cast<int>(points_.size()); }

  // Adds a hook point after all others. Returns its index.
  int Add(HookPoint point);
  // Adds another accepted name of a hook point; does nothing if the name is already taken.
  void Alias(absl::string_view name, int index) { aliases_.try_emplace(name, index); }
  void RemoveAlias(absl::string_view name) { aliases_.erase(name); }

  // Returns the index of a full name or an alias; -1 if there is none.
  int Find(absl::string_view name) const;

  // Expands names and wildcards (`*` crosses dots, `{2,5}` lists alternatives, everything else is literal). The result
  // is in the order of `patterns`, with a wildcard's matches in the order of the model. A repeated hook point stays at
  // its first place, and an alias that was asked for is kept as its name even if a wildcard came first.
  // INVALID_ARGUMENT, naming the field `hook_points[i]`: an unknown name (with the nearest names), a refused one, a
  // wildcard that matches nothing, a malformed wildcard, a name given twice (also by an alias), an entry longer than a
  // name can be, more wildcards than a request needs. INVALID_ARGUMENT, naming `hook_points`: no patterns, or more than
  // `max_hook_points` before or after expansion.
  absl::StatusOr<std::vector<ResolvedHookPoint>> Resolve(absl::Span<const std::string> patterns,
                                                         int max_hook_points) const;

  // Returns up to `count` names that are nearest to `name` by edit distance, nearest first.
  std::vector<std::string> Nearest(absl::string_view name, int count) const;

 private:
  std::vector<HookPoint> points_;
  absl::flat_hash_map<std::string, int> aliases_;
  absl::flat_hash_map<std::string, std::string> refused_;
  absl::flat_hash_map<std::string, int> index_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_HOOK_POINTS_H_
