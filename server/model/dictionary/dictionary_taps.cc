#include "server/model/dictionary/dictionary_taps.h"

#include <algorithm>
#include <set>

#include "server/model/dictionary/dictionary.h"

namespace hookline {

DictionaryTaps::DictionaryTaps(const std::vector<AttachedDictionary>& dictionaries, absl::Span<const int> wanted)
    : dictionaries_(dictionaries), wanted_(wanted) {
  std::set<int> computed;
  for (int hook_point : wanted) {
    for (const AttachedDictionary& one : dictionaries) {
      const bool is_of_it = hook_point >= one.first_point && hook_point < one.first_point + kDictionaryPoints;
      if (is_of_it) hook_point = one.hook_point;
    }
    computed.insert(hook_point);
  }
  computed_.assign(computed.begin(), computed.end());
}

void DictionaryTaps::HandOut(int hook_point, const at::Tensor& rows, Model::Tap tap) const {
  const auto is_wanted = [&](int point) { return std::binary_search(wanted_.begin(), wanted_.end(), point); };
  if (is_wanted(hook_point)) tap(hook_point, rows);
  for (const AttachedDictionary& one : dictionaries_) {
    if (one.hook_point != hook_point) continue;
    for (int i = 0; i < kDictionaryPoints; ++i) {
      if (!is_wanted(one.first_point + i)) continue;
      tap(one.first_point + i, one.dictionary->Compute(static_cast<DictionaryPoint>(i), rows));
    }
  }
}

}  // namespace hookline
