#include "server/model/dictionary/dictionary_taps.h"

#include <algorithm>

#include "server/model/dictionary/dictionary.h"

namespace hookline {

DictionaryTaps::DictionaryTaps(const std::vector<AttachedDictionary>& dictionaries, absl::Span<const int> wanted,
                               const std::set<int>& replacing)
    : dictionaries_(dictionaries), wanted_(wanted) {
  std::set<int> computed(wanted.begin(), wanted.end());
  for (size_t i = 0; i < dictionaries.size(); ++i) {
    const AttachedDictionary& one = dictionaries[i];
    const bool is_error_wanted = IsWanted(one, DictionaryPoint::kError);
    const bool is_replacing = replacing.count(static_cast<int>(i)) != 0;
    bool is_read = is_replacing;
    for (int point = one.first_point; point < one.first_point + kDictionaryPoints; ++point) {
      is_read |= computed.erase(point) != 0;
    }
    if (is_read) computed.insert(one.hook_point);
    if (is_error_wanted) computed.insert(one.output_point);
    if (IsTranscoder(one) && (is_error_wanted || is_replacing)) keeping_.insert(static_cast<int>(i));
  }
  computed_.assign(computed.begin(), computed.end());
}

bool DictionaryTaps::IsWanted(const AttachedDictionary& dictionary, DictionaryPoint point) const {
  return std::binary_search(wanted_.begin(), wanted_.end(), dictionary.first_point + static_cast<int>(point));
}

void DictionaryTaps::HandOut(int hook_point, const at::Tensor& rows, Model::Tap tap) {
  if (std::binary_search(wanted_.begin(), wanted_.end(), hook_point)) tap(hook_point, rows);
  at::Tensor shared;  // the rows in float32, in which all dictionaries compute
  for (size_t i = 0; i < dictionaries_.size(); ++i) {
    const AttachedDictionary& one = dictionaries_[i];
    const Dictionary& dictionary = *one.dictionary;
    if (one.hook_point == hook_point) {
      if (keeping_.count(static_cast<int>(i)) != 0) {
        inputs_[static_cast<int>(i)] = dictionary.PartOf(rows).contiguous();
      }
      std::vector<DictionaryPoint> points;
      for (int p = 0; p < static_cast<int>(DictionaryPoint::kError); ++p) {
        if (IsWanted(one, static_cast<DictionaryPoint>(p))) points.push_back(static_cast<DictionaryPoint>(p));
      }
      if (!points.empty()) {
        if (!shared.defined()) shared = rows.to(at::kFloat);
        dictionary.Compute(points, dictionary.PartOf(shared), rows.scalar_type(),
                           [&](DictionaryPoint point, const at::Tensor& values) {
                             tap(one.first_point + static_cast<int>(point), values);
                           });
      }
    }
    if (one.output_point != hook_point || !IsWanted(one, DictionaryPoint::kError)) continue;
    const at::Tensor outputs = IsTranscoder(one) ? rows : dictionary.PartOf(rows);
    const at::Tensor& inputs = IsTranscoder(one) ? inputs_.at(static_cast<int>(i)) : outputs;
    tap(one.first_point + static_cast<int>(DictionaryPoint::kError), dictionary.Error(inputs, outputs));
  }
}

at::Tensor DictionaryTaps::InputOf(int dictionary) const {
  const auto found = inputs_.find(dictionary);
  return found == inputs_.end() ? at::Tensor() : found->second;
}

void DictionaryTaps::Fork(absl::Span<const int64_t> chosen, int64_t positions) {
  if (inputs_.empty()) return;
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(chosen.data(), chosen.size()), at::kLong);
  for (auto& [dictionary, rows] : inputs_) {
    const at::Tensor sequences = rows.view({-1, positions, rows.size(1)});
    rows = sequences.index_select(0, index.to(rows.device())).view({-1, rows.size(1)});
  }
}

}  // namespace hookline
