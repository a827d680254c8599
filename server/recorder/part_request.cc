#include "server/recorder/part_request.h"

#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/capture/selection.h"

namespace hookline {
namespace {

// Subtracts the rows of the parts before this one from a budget.
absl::Status TakeBefore(int64_t rows_before, const std::string& field, int64_t* budget) {
  if (*budget > rows_before || *budget < 1) {  // the plan refuses a budget below 1
    *budget -= *budget < 1 ? 0 : rows_before;
    return absl::OkStatus();
  }
  return InvalidField(field, absl::StrCat("the parts before have ", rows_before, " rows, so nothing is left of ",
                                          *budget, "; merge only those parts"));
}

absl::Status CutBudgets(int64_t rows_before, CaptureRequest* request) {
  if (request->max_activations.has_value()) {
    RETURN_IF_ERROR(TakeBefore(rows_before, "capture.max_activations", &*request->max_activations));
  }
  for (auto& [name, budget] : request->max_activations_by_hook_point) {
    RETURN_IF_ERROR(
        TakeBefore(rows_before, absl::StrCat("capture.max_activations_by_hook_point[\"", name, "\"]"), &budget));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CutToPart(const Engine& engine, RecordingPart* part, CaptureRequest* request) {
  if (part->count < 1 || part->count > kMaxParts) {
    return InvalidField("part.count", absl::StrCat(part->count, " is not from 1 to ", kMaxParts));
  }
  if (part->index < 0 || part->index >= part->count) {
    return InvalidField("part.index", absl::StrCat(part->index, " is not from 0 to ", part->count - 1));
  }
  auto* const source = std::get_if<DatasetSource>(&request->source);
  if (source == nullptr) return InvalidField("part", "only the sequences of a dataset can be divided into parts");
  if (source->shuffle_seed.has_value() || source->epochs != 1) {
    return InvalidField("part", "only one pass in order can be divided into parts; leave out shuffle_seed and epochs");
  }
  ASSIGN_OR_RETURN(const CapturePlan whole, engine.Plan(*request));
  part->first_sequence = whole.dataset.begin();
  part->sequence_count = whole.dataset.end() - whole.dataset.begin();
  if (part->count > part->sequence_count) {
    return InvalidField("part.count",
                        absl::StrCat(part->count, " is more than the ", part->sequence_count, " sequences to divide"));
  }
  const int64_t begin = PartBegin(*part, part->index);
  source->first_sequence = begin;
  source->sequence_count = PartBegin(*part, part->index + 1) - begin;
  source->skip_sequences = 0;
  const bool has_budget = request->max_activations.has_value() || !request->max_activations_by_hook_point.empty();
  if (!has_budget) return absl::OkStatus();
  if (!whole.selection.exclude_token_ids.empty()) {
    return InvalidField("capture.selection.exclude_token_ids",
                        "the number of rows of the parts before is not known beforehand; leave out the budgets, and "
                        "read as many rows as you want from the merged recording");
  }
  const int64_t rows_of_each = SelectedPositions(whole.selection, whole.dataset.length());
  return CutBudgets(rows_of_each * (begin - part->first_sequence), request);
}

}  // namespace hookline
