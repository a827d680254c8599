// Lists LibTorch's operators that a TorchScript file can use.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_ALLOWED_OPERATORS_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_ALLOWED_OPERATORS_H_

#include "absl/strings/string_view.h"

namespace hookline {

// Returns whether the operator `name`, with its namespace and without its overload ("aten::matmul"), is on the list of
// operators that only compute. Unknown operators are not on it.
bool OnlyComputes(absl::string_view name);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_ALLOWED_OPERATORS_H_
