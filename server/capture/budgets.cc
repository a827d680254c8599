#include "server/capture/budgets.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr size_t kNamesInAnError = 5;

absl::Status CheckBudget(absl::string_view field, int64_t rows) {
  if (rows >= 1) return absl::OkStatus();
  return InvalidField(field, absl::StrCat(rows,
                                          " is not a budget; ask for at least 1 row, or leave it out for as many "
                                          "as the server allows"));
}

}  // namespace

absl::StatusOr<std::vector<Budget>> ResolveBudgets(const std::optional<int64_t>& max_activations,
                                                   const std::map<std::string, int64_t>& max_activations_by_hook_point,
                                                   absl::Span<const std::string> names,
                                                   absl::Span<const int64_t> caps) {
  if (max_activations.has_value()) RETURN_IF_ERROR(CheckBudget("max_activations", *max_activations));
  for (const auto& [name, rows] : max_activations_by_hook_point) {
    const std::string field = absl::StrCat("max_activations_by_hook_point[\"", name, "\"]");
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      const size_t shown = std::min(kNamesInAnError, names.size());
      return InvalidField(
          field, absl::StrCat("is not among the hook points asked for, which are ",
                              absl::StrJoin(names.subspan(0, shown), ", "), names.size() > shown ? ", ..." : ""));
    }
    RETURN_IF_ERROR(CheckBudget(field, rows));
  }
  std::vector<Budget> budgets;
  for (size_t i = 0; i < names.size(); ++i) {
    const auto own = max_activations_by_hook_point.find(names[i]);
    const int64_t asked = own != max_activations_by_hook_point.end() ? own->second : max_activations.value_or(caps[i]);
    budgets.push_back({std::min(asked, caps[i]), asked > caps[i]});
  }
  return budgets;
}

}  // namespace hookline
