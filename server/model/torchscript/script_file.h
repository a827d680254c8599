// Checks TorchScript archives before LibTorch loads them, and loads them.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_FILE_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_FILE_H_

#include <torch/csrc/jit/api/module.h>

#include <string>

#include "absl/status/statusor.h"

namespace hookline {

struct ScriptFile {
  torch::jit::Module module;  // on the CPU, in evaluation mode
  std::string fingerprint;  // 32 hexadecimal digits: XXH3-128 over each record's name and bytes, without debug records
};

// Loads `path`. Errors: NOT_FOUND, or FAILED_PRECONDITION naming file and record: the file is not a zip archive, holds
// no code (a state dict), cannot be read by LibTorch, has code that does more than compute (script_program.h), or
// changes meanwhile. A Deadline can end all code that the module runs.
absl::StatusOr<ScriptFile> LoadScriptFile(const std::string& path);

// Returns the message of an exception in one line; for a TorchScript stack trace, its last line.
std::string OneLine(const std::exception& error);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_FILE_H_
