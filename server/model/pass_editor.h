// Takes part in a forward pass beyond recording it: replaces rows, lets the batch grow between blocks, receives the
// input of the unembedding, and lets a pass end early and another one resume from there.
#ifndef HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_
#define HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/model/forward_pass.h"
#include "server/model/taps.h"
#include "server/model/unembedding.h"

namespace hookline {

// The state of a pass of B sequences of T tokens before a layer, with everything that the rest of the pass needs.
// Nothing writes to its tensors.
struct PassState {
  int layer = -1;                     // as in PassEditor::Fork
  at::Tensor token_ids;               // (B, T)
  std::vector<int64_t> lengths;       // of the sequences; empty: all T
  at::Tensor per_layer;               // ForwardPass::per_layer
  std::vector<KeysAndValues> shared;  // ForwardPass::shared

  // Rows (B * T, width). Each is undefined before it is computed, and if no later layer reads it.
  at::Tensor x;       // the residual stream
  at::Tensor x0;      // the embedding's output
  at::Tensor bigram;  // embeddings of pairs of tokens
  at::Tensor kept;    // the middle block's output
};

class PassEditor {
 public:
  virtual ~PassEditor() = default;

  // The hook points at which Replace is called, ascending; none from before the layer at which the pass begins.
  virtual absl::Span<const int> hook_points() const = 0;
  virtual PassEnd end() const = 0;

  // The state from which the pass resumes, which an earlier pass gave to Keep; null: the pass begins at the start.
  virtual const PassState* begin() const { return nullptr; }
  // Returns whether Keep is called before this layer.
  virtual bool Keeps(int /*layer*/) const { return false; }
  // Receives the state before a layer. It is called before Fork of the same layer.
  virtual void Keep(PassState state) = 0;

  // Called before the embedding (`layer` -1), before each block, and before the last norm (`layer` is the number of
  // layers). Returns the sequences with which the pass goes on, as indices into its current batch; empty: the batch
  // stays as it is.
  virtual std::vector<int64_t> Fork(int layer) = 0;

  // Like Taps::Visit, returns rows (batch * positions, width) to go on with, or an undefined tensor.
  virtual at::Tensor Replace(int hook_point, const at::Tensor& rows) = 0;

  // Called last if end() is kLogits: `rows` (batch * positions, width) are the unembedding's input.
  virtual void Finish(const at::Tensor& rows, const Unembedding& unembedding) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_PASS_EDITOR_H_
