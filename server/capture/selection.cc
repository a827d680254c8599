#include "server/capture/selection.h"

#include <algorithm>
#include <utility>

namespace hookline {
namespace {

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

int64_t End(const Selection& selection, int64_t length) {
  return selection.position_end == 0 ? length : std::min(length, selection.position_end);
}

}  // namespace

void SelectPositions(const Selection& selection, int64_t sequence, absl::Span<const uint32_t> ids,
                     std::vector<int32_t>* positions) {
  const size_t begin = positions->size();
  const int64_t end = End(selection, static_cast<int64_t>(ids.size()));
  for (int64_t t = selection.skip_first; t < end; t += selection.position_stride) {
    if (std::binary_search(selection.exclude_token_ids.begin(), selection.exclude_token_ids.end(), ids[t])) continue;
    positions->push_back(static_cast<int32_t>(t));
  }
  const int64_t kept = static_cast<int64_t>(positions->size() - begin);
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
  const int64_t kept = (span + selection.position_stride - 1) / selection.position_stride;
  return selection.sample_rows == 0 ? kept : std::min(kept, selection.sample_rows);
}

}  // namespace hookline
