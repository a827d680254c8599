// Chooses which of the captures that wait for slabs is admitted next.
#ifndef HOOKLINE_SERVER_ENGINE_ADMISSION_H_
#define HOOKLINE_SERVER_ENGINE_ADMISSION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "server/base/slab_pool.h"
#include "server/engine/ids.h"

namespace hookline {

// Captures that are admitted together: one, or the first members of a feed.
struct Admission {
  FlowId flow = kNoFlow;
  std::vector<CaptureId> captures;
  int64_t slabs = 0;        // of all their windows together
  int64_t least_slabs = 0;  // of the smallest windows that suffice: two row groups each
  // Windows of captures that came later and overtook this one while it was the oldest.
  std::vector<std::shared_ptr<SlabWindow>> overtaken_by;
};

// Returns the index of the admission to let in now. `slabs` holds what each admission needs, oldest first. The oldest
// is chosen if `free` slabs suffice for it, otherwise the first later one that fits and may overtake it. Without
// overtaking, slow readers that keep out the oldest would keep out all others. To prevent starvation, all that overtake
// the oldest together hold at most min(a quarter of the slabs, the slabs that it leaves over); they hold
// `held_by_overtakers` now.
std::optional<size_t> ChooseAdmission(absl::Span<const int64_t> slabs, int64_t free, int64_t slab_count,
                                      int64_t held_by_overtakers);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_ADMISSION_H_
