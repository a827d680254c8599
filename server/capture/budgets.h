// Budgets: how many rows of each hook point a capture may receive.
#ifndef HOOKLINE_SERVER_CAPTURE_BUDGETS_H_
#define HOOKLINE_SERVER_CAPTURE_BUDGETS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline {

struct Budget {
  int64_t rows = 0;
  bool clipped = false;  // the request asked for more than the cap
};

// Returns the budgets of the hook points `names`, in their order. A budget is the hook point's own entry, else
// `max_activations`, else its cap, and never more than its cap. INVALID_ARGUMENT for a budget below 1 and for an entry
// that is not among `names`.
absl::StatusOr<std::vector<Budget>> ResolveBudgets(const std::optional<int64_t>& max_activations,
                                                   const std::map<std::string, int64_t>& max_activations_by_hook_point,
                                                   absl::Span<const std::string> names, absl::Span<const int64_t> caps);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_BUDGETS_H_
