// A TorchScript module as a model: `torch.jit.save`d, with any forward that takes token ids (batch, positions).
//
// Hook points are the modules' outputs, named by module path: `blocks.0.mlp`; `norm@0`, `norm@1` if a module is called
// more than once; `first[0]` for an element of a tuple; `output` for the whole module's. Their values are those that a
// forward hook in Python sees at the moment of the call.
//
//   TorchScriptOptions options;
//   options.path = "model.pt";
//   auto model = LoadTorchScript(options);
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TORCHSCRIPT_MODEL_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TORCHSCRIPT_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/dtype.h"
#include "server/model/model.h"

namespace hookline {

struct TorchScriptOptions {
  std::string name;               // the name that requests use; empty: the last part of `path`
  std::string path;               // the file
  std::string device = "cpu";     // as LibTorch names it: "cpu", "cuda:0"
  Dtype dtype = Dtype::kFloat32;  // parameters and buffers of a floating type are converted to it
  int64_t context_length = 0;     // the most tokens that the module takes; 0: unknown
  int64_t vocabulary_size = 0;    // ids are less than this; 0: unknown
  // The limit of one forward pass, including the trial runs when the model is loaded.
  absl::Duration timeout = absl::Minutes(1);
};

// Loads the file and finds its hook points: two short batches of zeros run through the whole module. A hook point is an
// output that had the shape (batch, positions, ...) or (positions, batch, ...) both times, or the shape (positions,
// ...) or (1, positions, ...), which holds for every sequence; the remaining dimensions are flattened into its width.
// Everything else is refused by name when a request asks for it.
//
// In ModelInfo, the architecture is "torchscript" and the variant is the module's class. If context_length or
// vocabulary_size are not given, they become INT32_MAX, `details` and `warning` say so, and an exception that the
// module throws in Forward is INVALID_ARGUMENT instead of INTERNAL. `blocks_executed` counts module calls that returned
// a tensor.
//
// A TorchScript file is a program, and loading it runs it. It can compute with tensors until `timeout` and use any
// amount of memory; everything else that a program can do is refused before any of it runs (script_program.h). Errors,
// naming the file: NOT_FOUND; INVALID_ARGUMENT (an option, named; also CUDA without both limits); FAILED_PRECONDITION
// (not a TorchScript file, damaged, does more than compute, keeps state, takes more than token ids and an attention
// mask, cannot run on zeros, does not end in time, or is frozen for another device or dtype); RESOURCE_EXHAUSTED
// (memory, with both numbers).
absl::StatusOr<std::unique_ptr<Model>> LoadTorchScript(const TorchScriptOptions& options);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TORCHSCRIPT_MODEL_H_
