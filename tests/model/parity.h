// Compares a model with reference activations.
#ifndef HOOKLINE_TESTS_MODEL_PARITY_H_
#define HOOKLINE_TESTS_MODEL_PARITY_H_

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "server/model/model.h"

namespace hookline {

// The contents of a reference.safetensors: `tokens_j`, `<hook point>/<j>`, and `positions_j` if only a part of a
// sequence is stored.
struct Reference {
  std::vector<at::Tensor> tokens;                                // int64 (T)
  std::vector<at::Tensor> positions;                             // int64, undefined if all are stored
  std::map<std::string, std::map<int, at::Tensor>> activations;  // by hook point and sequence, float32 (T, width)
};
Reference ReadReference(const std::string& path);

struct Difference {
  std::string what;      // "HOOK POINT/SEQUENCE"
  double relative = 0;   // ||a - b|| / ||b||
  double worst_row = 0;  // the same of a single row
};

// Compares every activation of the reference with the model's, which runs each sequence alone. Fails the test if a hook
// point is missing; leaves out `logits`.
std::vector<Difference> CompareWithReference(Model& model, const Reference& reference);

// Runs one batch of sequences of `lengths` tokens (empty: full ones). Returns the values of `hook_points` (indices,
// ascending), each (batch * positions, width) float32.
std::vector<at::Tensor> RunModel(Model& model, const at::Tensor& token_ids, const std::vector<int>& hook_points,
                                 const std::vector<int64_t>& lengths = {});

}  // namespace hookline

#endif  // HOOKLINE_TESTS_MODEL_PARITY_H_
