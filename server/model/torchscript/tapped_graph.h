// The forward method of a TorchScript module as one graph in which the output of every module call has a name.
//
// A hook on a class would fire for all of its instances, so the loaded graph is rewritten instead: calls are inlined
// one by one, each known by the object it is made on, and the values that they return become outputs of the graph.
//
//   ASSIGN_OR_RETURN(TappedGraph tapped, TapModuleCalls(module));
//   auto graph = CutToTaps(tapped, {3});  // computes taps[3] and nothing after it
//
// Used inside this folder only: functions here throw what LibTorch throws.
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
  // Module path, `@K` where the module is called more than once (K counts its calls from 0), `[I]` for each level of
  // tuple; `output` for the whole module's.
  std::string name;
  // Class of the module as TorchScript names it, without packages.
  std::string class_name;
  // Numeric components of the path, e.g. "blocks" and 3 of `blocks.3.mlp`, for the first of them; "" and -1 if none.
  std::string container;
  int number = -1;
  // Module calls with a tensor to tap that have returned when this value is there, this one included.
  int calls_returned = 0;
};

struct TappedGraph {
  // Inputs: the module, token ids (batch, positions) and, if `takes_mask`, an attention mask of the same shape.
  // Outputs: the taps in the order in which the calls return. A tap whose tensor is written to later is a copy taken in
  // time.
  std::shared_ptr<torch::jit::Graph> graph;
  std::vector<TappedValue> taps;
  bool takes_mask = false;
  // Names that somebody could ask for and why they cannot be tapped, e.g. a tuple's or a module's that never runs.
  std::map<std::string, std::string> refused;
};

// Rewrites a copy of `module`'s forward; `module` itself stays as it is and must stay so (its attributes other than
// tensors are folded into the graph). Errors (FAILED_PRECONDITION): no method forward, an input besides token ids that
// has no default and is not an attention mask, attributes that forward assigns, a graph beyond the limit.
absl::StatusOr<TappedGraph> TapModuleCalls(const torch::jit::Module& module);

// A graph with the inputs of `tapped` and, as outputs, `taps` (indices, not empty, ascending and unique). What comes
// after the last of them is cut off, side effects included; what none of them needs is left out.
std::shared_ptr<torch::jit::Graph> CutToTaps(const TappedGraph& tapped, absl::Span<const int> taps);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TAPPED_GRAPH_H_
