#include "server/capture/selection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/mix.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// A longer list is not a list of special tokens, and every token is looked up in it.
constexpr size_t kMaxExcludedIds = 1024;

int64_t End(const Selection& selection, int64_t length) {
  if (selection.position_end < 0) return length + selection.position_end;
  return selection.position_end == 0 ? length : std::min(length, selection.position_end);
}

}  // namespace

absl::StatusOr<Selection> NormalizeSelection(Selection selection, int64_t vocabulary_size,
                                             int64_t max_sequence_length) {
  if (selection.skip_first < 0) {
    return InvalidField("selection.skip_first", absl::StrCat(selection.skip_first, " is negative"));
  }
  if (selection.position_end > 0 && selection.position_end <= selection.skip_first) {
    return InvalidField("selection.position_end",
                        absl::StrCat(selection.position_end, " leaves no position after skip_first ",
                                     selection.skip_first, "; ask for more, or 0 for no end"));
  }
  if (selection.skip_first >= max_sequence_length) {
    return InvalidField("selection.skip_first",
                        absl::StrCat(selection.skip_first, " skips every sequence, which has at most ",
                                     max_sequence_length, " tokens"));
  }
  if (selection.position_end < 0 && selection.skip_first - selection.position_end >= max_sequence_length) {
    return InvalidField("selection.position_end",
                        absl::StrCat(selection.position_end, " with skip_first ", selection.skip_first,
                                     " leaves no position of any sequence, which has at most ", max_sequence_length,
                                     " tokens; ask for more, or 0 for no end"));
  }
  if (selection.last_only && selection.sample_rows != 0) {
    return InvalidField("selection.last_only",
                        absl::StrCat("contradicts sample_rows ", selection.sample_rows, "; give one of them"));
  }
  if (selection.position_stride < 0) {
    return InvalidField("selection.position_stride",
                        absl::StrCat(selection.position_stride, " is negative; 1 keeps each position"));
  }
  selection.position_stride = std::max<int64_t>(1, selection.position_stride);
  if (selection.sample_rows < 0) {
    return InvalidField("selection.sample_rows", absl::StrCat(selection.sample_rows, " is negative; 0 keeps all"));
  }
  if (selection.exclude_token_ids.size() > kMaxExcludedIds) {
    return InvalidField(
        "selection.exclude_token_ids",
        absl::StrCat(selection.exclude_token_ids.size(), " ids; at most ", kMaxExcludedIds, " can be left out"));
  }
  for (size_t i = 0; i < selection.exclude_token_ids.size(); ++i) {
    if (selection.exclude_token_ids[i] >= vocabulary_size) {
      return InvalidField(absl::StrCat("selection.exclude_token_ids[", i, "]"),
                          absl::StrCat("token id ", selection.exclude_token_ids[i],
                                       " is not below the vocabulary's size ", vocabulary_size));
    }
  }
  std::vector<uint32_t>& ids = selection.exclude_token_ids;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return selection;
}

void SelectPositions(const Selection& selection, int64_t sequence, absl::Span<const uint32_t> ids,
                     std::vector<int32_t>* positions) {
  const size_t begin = positions->size();
  const int64_t end = End(selection, static_cast<int64_t>(ids.size()));
  for (int64_t t = selection.skip_first; t < end; t += selection.position_stride) {
    if (std::binary_search(selection.exclude_token_ids.begin(), selection.exclude_token_ids.end(), ids[t])) continue;
    positions->push_back(static_cast<int32_t>(t));
  }
  const int64_t kept = static_cast<int64_t>(positions->size() - begin);
  if (selection.last_only && kept > 1) {
    positions->erase(positions->begin() + begin, positions->end() - 1);
    return;
  }
  if (selection.sample_rows == 0 || kept <= selection.sample_rows) return;

  const uint64_t sequence_key = Mix(Mix(selection.seed) + static_cast<uint64_t>(sequence));
  std::vector<std::pair<uint64_t, int32_t>> keyed;
  keyed.reserve(kept);
  for (auto it = positions->begin() + begin; it != positions->end(); ++it) {
    keyed.emplace_back(Mix(sequence_key + static_cast<uint64_t>(*it)), *it);
  }
  std::nth_element(keyed.begin(), keyed.begin() + selection.sample_rows, keyed.end());
  keyed.resize(selection.sample_rows);
  positions->resize(begin);
  for (const auto& [key, position] : keyed) positions->push_back(position);
  std::sort(positions->begin() + begin, positions->end());
}

int64_t SelectedPositions(const Selection& selection, int64_t length) {
  const int64_t span = End(selection, length) - selection.skip_first;
  if (span <= 0) return 0;
  if (selection.last_only) return 1;
  const int64_t kept = (span + selection.position_stride - 1) / selection.position_stride;
  return selection.sample_rows == 0 ? kept : std::min(kept, selection.sample_rows);
}

}  // namespace hookline
