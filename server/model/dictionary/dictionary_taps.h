// Hook points of dictionaries among those of a pass.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_

#include <ATen/ATen.h>

#include <vector>

#include "absl/types/span.h"
#include "server/model/model.h"

namespace hookline {

class DictionaryTaps {
 public:
  // `wanted`: ascending and unique, of the model and of its `dictionaries`, which outlive this.
  DictionaryTaps(const std::vector<AttachedDictionary>& dictionaries, absl::Span<const int> wanted);

  // The model's own hook points that are wanted, or that dictionaries encode for what is wanted. Ascending.
  absl::Span<const int> computed() const { return computed_; }

  // Calls `tap` with what is wanted of the rows of one of computed(): themselves, and what dictionaries make of them.
  void HandOut(int hook_point, const at::Tensor& rows, Model::Tap tap) const;

 private:
  const std::vector<AttachedDictionary>& dictionaries_;
  const absl::Span<const int> wanted_;
  std::vector<int> computed_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_
