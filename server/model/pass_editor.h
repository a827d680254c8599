// Takes part in a forward pass beyond recording it: replaces rows, lets the batch grow between blocks, and receives
// what the logits are computed from.
#ifndef HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_
#define HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/model/taps.h"
#include "server/model/unembedding.h"

namespace hookline {

class PassEditor {
 public:
  virtual ~PassEditor() = default;

  // The hook points at which Replace is called, ascending.
  virtual absl::Span<const int> hook_points() const = 0;
  virtual PassEnd end() const = 0;

  // Called before the embedding (`layer` -1), before each block, and before the last norm (the number of layers).
  // Returns the sequences with which the pass goes on, as indices into its batch up to now; empty: it stays as it is.
  virtual std::vector<int64_t> Fork(int layer) = 0;

  // Like Taps::Visit, returns rows (batch * positions, width) to go on with, or an undefined tensor.
  virtual at::Tensor Replace(int hook_point, const at::Tensor& rows) = 0;

  // Called last where end() is kLogits: `rows` (batch * positions, width) are the unembedding's input.
  virtual void Finish(const at::Tensor& rows, const Unembedding& unembedding) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_
