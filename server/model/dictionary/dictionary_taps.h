// Adds the hook points of dictionaries to those of a pass.
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
  // `wanted`: ascending and unique hook points of the model and of its `dictionaries`, which outlive this. `replacing`:
  // indices of dictionaries with whose reconstructions the pass goes on.
  DictionaryTaps(const std::vector<AttachedDictionary>& dictionaries, absl::Span<const int> wanted,
                 const std::set<int>& replacing = {});

  // The model's own hook points that are wanted, or that dictionaries need for the wanted ones. Ascending.
  absl::Span<const int> computed() const { return computed_; }

  // Calls `tap` with the wanted values that follow from the rows of one of computed(): the rows themselves and the
  // values of dictionaries. Call it for all of computed(), in their order.
  void HandOut(int hook_point, const at::Tensor& rows, Model::Tap tap);

  // The rows that a transcoder of `replacing` has read, (n, width), contiguous. Undefined for an autoencoder, since it
  // replaces the rows that it reads.
  at::Tensor InputOf(int dictionary) const;

  // All these inputs by dictionary, for a pass that resumes where they were taken.
  using Inputs = std::map<int, at::Tensor>;
  const Inputs& inputs() const { return inputs_; }
  void set_inputs(Inputs inputs) { inputs_ = std::move(inputs); }

  // Tells that the batch, sequences of `positions` tokens, goes on with the sequences of these indices.
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
  Inputs inputs_;          // those that were read, by dictionary
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_TAPS_H_
