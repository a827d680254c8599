// Finds out what a TorchScript archive's code would do before any of it runs.
//
// A TorchScript file is a program: loading runs its `__setstate__`s, compiling runs the default values of parameters,
// and a capture runs its forward. What it may do is decided on the graphs that LibTorch's own compiler makes of it, so
// that no way of writing a call is missed.
//
// Used inside this folder only: functions here throw what LibTorch throws.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_PROGRAM_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_PROGRAM_H_

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/compilation_unit.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hookline {

// The qualified names of the archive's classes, once every operator of every function, method and hook is one that only
// computes (allowed_operators.h), every `__setstate__` ends (it and what it calls have no loop and a bounded size), and
// nothing that compiling runs is more than a literal. FAILED_PRECONDITION, a sentence that names the operator and the
// function.
absl::StatusOr<std::vector<std::string>> CheckProgram(caffe2::serialize::PyTorchStreamReader& archive);

// Makes every function and every method of `classes` in `unit` one that Deadline ends (deadline.h), and that warns of
// nothing, since a warning's text comes from the file and would reach the log.
void Confine(torch::jit::CompilationUnit& unit, const std::vector<std::string>& classes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_PROGRAM_H_
