// Hook points of dictionaries among those of a pass.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_

#include <ATen/ATen.h>

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "server/model/model.h"

namespace hookline {

// Serves one pass. Thread-compatible.
class DictionaryTaps {
 public:
  // `wanted`: ascending and unique, of the model and of its `dictionaries`, which outlive this. `replacing`: indices of
  // dictionaries whose reconstructions the pass goes on with.
  DictionaryTaps(const std::vector<AttachedDictionary>& dictionaries, absl::Span<const int> wanted,
                 const std::set<int>& replacing = {});

  // The model's own hook points that are wanted, or that dictionaries read for what is wanted. Ascending.
  absl::Span<const int> computed() const { return computed_; }

  // Calls `tap` with what is wanted of the rows of one of computed(): themselves, and what dictionaries make of them.
  // Call it for all of them in their order.
  void HandOut(int hook_point, const at::Tensor& rows, Model::Tap tap);

  // The rows that a transcoder of `replacing` has read, (n, width), contiguous. Undefined for an autoencoder, which
  // reads what it replaces.
  at::Tensor InputOf(int dictionary) const;

  // All of those by dictionary, for a pass that goes on from where they were taken.
  using Inputs = std::map<int, at::Tensor>;
  const Inputs& inputs() const { return inputs_; }
  void set_inputs(Inputs inputs) { inputs_ = std::move(inputs); }

  // The batch, sequences of `positions` tokens, goes on with these of its sequences.
  void Fork(absl::Span<const int64_t> chosen, int64_t positions);

 private:
  bool IsWanted(const AttachedDictionary& dictionary, DictionaryPoint point) const;
  static bool IsTranscoder(const AttachedDictionary& dictionary) {
    return dictionary.output_point != dictionary.hook_point;
  }

  const std::vector<AttachedDictionary>& dictionaries_;
  const absl::Span<const int> wanted_;
  std::vector<int> computed_;
  std::set<int> keeping_;  // transcoders whose input is needed until their output is computed
  Inputs inputs_;          // of those
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_
