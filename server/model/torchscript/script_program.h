// Checks what a TorchScript archive's code would do, before any of it runs.
//
// A TorchScript file is a program: loading runs its `__setstate__`s, compiling runs the default values of parameters,
// and a capture runs its forward. The checks work on the graphs that LibTorch's own compiler makes of the code, so that
// no way of writing a call escapes them.
//
// Only this folder uses it: the functions here throw LibTorch's exceptions.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_PROGRAM_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_PROGRAM_H_

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/compilation_unit.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hookline {

// Checks that every operator of every function, method and hook only computes (allowed_operators.h), that every
// `__setstate__` ends (it and everything it calls have no loop and a bounded size), and that compiling runs only
// literals. Returns the qualified names of the archive's classes. FAILED_PRECONDITION: a sentence that names the
// operator and the function.
absl::StatusOr<std::vector<std::string>> CheckProgram(caffe2::serialize::PyTorchStreamReader& archive);

// Changes every function of `unit` and every method of `classes` so that Deadline can end it (deadline.h), and so that
// it logs no warnings, whose text would come from the file.
void Confine(torch::jit::CompilationUnit& unit, const std::vector<std::string>& classes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_PROGRAM_H_
