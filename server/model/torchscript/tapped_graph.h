// Turns the forward method of a TorchScript module into one graph in which the output of every module call has a name.
//
// A hook on a class would fire for all of its instances, so the loaded graph is rewritten instead: calls are
// inlined one by one, identified by the object that they are called on, and the values that they return become
// outputs of the graph.
//
//   ASSIGN_OR_RETURN(TappedGraph tapped, TapModuleCalls(module));
//   auto graph = CutToTaps(tapped, {3});  // computes taps[3] and nothing after it
//
// Only this folder uses it: the functions here throw LibTorch's exceptions.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TAPPED_GRAPH_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TAPPED_GRAPH_H_

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline {

// One tensor that a module call returned.
struct TappedValue {
  // Module path; `@K` if the module is called more than once (K counts its calls from 0); `[I]` for each level of
  // tuple. The whole module is `output`.
  std::string name;
  // Class of the module in TorchScript, without packages.
  std::string class_name;
  // The first numeric component of the path and what precedes it, e.g. 3 and "blocks" of `blocks.3.mlp`; -1 and "" if
  // there is none.
  std::string container;
  int number = -1;
  // The number of module calls with a tensor to tap that have returned when this value is computed, including its own.
  int calls_returned = 0;
};

struct TappedGraph {
  // Inputs: the module, token ids (batch, positions) and, if `takes_mask`, an attention mask of the same shape.
  // Outputs: the taps in the order in which the calls return. A tap whose tensor is written to later is a copy made
  // before that.
  std::shared_ptr<torch::jit::Graph> graph;
  std::vector<TappedValue> taps;
  bool takes_mask = false;
  // Names that users might ask for, with the reasons why they cannot be tapped, e.g. that of a tuple or of a module
  // that never runs.
  std::map<std::string, std::string> refused;
};

// Rewrites a copy of `module`'s forward. `module` itself is not changed, and must not change later (its
// attributes other than tensors are folded into the graph). Errors (FAILED_PRECONDITION): no method forward, an
// input besides token ids that has no default and is not an attention mask, attributes that forward assigns, a
// graph beyond the limit.
absl::StatusOr<TappedGraph> TapModuleCalls(const torch::jit::Module& module);

// Returns a graph with the inputs of `tapped` and, as outputs, `taps` (indices, not empty, ascending and unique).
// Everything after the last tap is cut off, including side effects, and nodes that no tap needs are removed.
std::shared_ptr<torch::jit::Graph> CutToTaps(const TappedGraph& tapped, absl::Span<const int> taps);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TAPPED_GRAPH_H_
