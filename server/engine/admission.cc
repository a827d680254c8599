#include "server/engine/admission.h"

#include <algorithm>

namespace hookline {

std::optional<size_t> ChooseAdmission(absl::Span<const int64_t> slabs, int64_t free, int64_t slab_count,
                                      int64_t held_by_overtakers) {
  if (slabs.empty()) return std::nullopt;
  if (slabs[0] <= free) return 0;
  const int64_t may_overtake = std::min(slab_count / 4, slab_count - slabs[0]) - held_by_overtakers;
  for (size_t i = 1; i < slabs.size(); ++i) {
    if (slabs[i] <= std::min(free, may_overtake)) return i;
  }
  return std::nullopt;
}

}  // namespace hookline
