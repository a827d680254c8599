// TorchScript archives: what is checked before LibTorch loads one, and loading itself.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_FILE_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_FILE_H_

#include <torch/csrc/jit/api/module.h>

#include <string>

#include "absl/status/statusor.h"

namespace hookline {

struct ScriptFile {
  torch::jit::Module module;  // on the CPU, in evaluation mode
  std::string fingerprint;  // 32 hexadecimal digits: XXH3-128 over each record's name and bytes, debug records left out
};

// Loads `path`. NOT_FOUND, or FAILED_PRECONDITION naming file and record: no zip archive, one without code (a state
// dict), one that LibTorch cannot read, code that does more than compute (script_program.h), a file that changes
// meanwhile. What the module runs can be ended by a Deadline.
absl::StatusOr<ScriptFile> LoadScriptFile(const std::string& path);

// Returns the message of an exception in one line: the last of a TorchScript stack trace.
std::string OneLine(const std::exception& error);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_SCRIPT_FILE_H_
