// A TorchScript module as a model: `torch.jit.save`d, any forward that takes token ids (batch, positions).
//
// Hook points are the modules' outputs, named by module path: `blocks.0.mlp`; `norm@0`, `norm@1` where a module is
// called more than once; `first[0]` for an element of a tuple; `output` for the whole module's. Values are what a
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
  std::string name;               // by which requests choose it; empty: the last part of `path`
  std::string path;               // the file
  std::string device = "cpu";     // as LibTorch names it: "cpu", "cuda:0"
  Dtype dtype = Dtype::kFloat32;  // parameters and buffers of a floating type are converted to it
  int64_t context_length = 0;     // tokens that the module takes; 0: the file cannot tell
  int64_t vocabulary_size = 0;    // ids are below it; 0: the file cannot tell
  // The time that one forward pass may take, the trial runs of loading included.
  absl::Duration timeout = absl::Minutes(1);
};

// Loads the file and finds its hook points: two short batches of zeros go through the whole module, and a hook point is
// what had shape (batch, positions, ...) or (positions, batch, ...) both times, or (positions, ...) or
// (1, positions, ...), the same for every sequence; the dimensions after are flattened into its width. Everything else
// is refused by name when a request asks for it.
//
// In ModelInfo: architecture "torchscript", variant the module's class. Where context_length or vocabulary_size are not
// given, INT32_MAX stands for them, `details` and `warning` say so, and an exception that the module throws in Forward
// is INVALID_ARGUMENT instead of INTERNAL. `blocks_executed` counts module calls that returned a tensor.
//
// A TorchScript file is a program, and loading it runs it. It may compute with tensors for as long as `timeout` says,
// and use as much memory as it likes; what else a program can do is refused before any of it runs (script_program.h).
// Errors, naming the file: NOT_FOUND; INVALID_ARGUMENT (an option, named: also CUDA without both limits);
// FAILED_PRECONDITION (not a TorchScript file, a damaged one, one that does more than compute, keeps state or takes
// more than token ids and an attention mask, one that cannot run on zeros or does not end in time, a frozen one for
// another device or dtype than its constants'); RESOURCE_EXHAUSTED (memory, with both numbers).
absl::StatusOr<std::unique_ptr<Model>> LoadTorchScript(const TorchScriptOptions& options);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_TORCHSCRIPT_MODEL_H_
