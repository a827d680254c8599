// Configures and describes the LibTorch that is loaded: its threads, and the library that computes its matrix products.
#ifndef HOOKLINE_SERVER_MODEL_RUNTIME_H_
#define HOOKLINE_SERVER_MODEL_RUNTIME_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline {

struct RuntimeInfo {
  std::string libtorch;  // its version
  std::string blas;      // "OpenBLAS (PATH)", "MKL", ...
  // True if BLAS is the reference implementation, with which products are tens of times slower.
  bool reference_blas = false;
  int threads = 0;
};

// Chooses the kernels of accelerators, and sets the number of threads of one operation on the CPU: `threads` (0: one
// for each core) are divided equally among `executors` that compute at the same time, each of which gets at least one.
// Call it before a model is loaded. Without it, LibTorch can use a single thread.
RuntimeInfo ConfigureRuntime(int threads, int executors = 1);

// Returns FAILED_PRECONDITION if the loaded LibTorch is not the version that the server was built with, as after an
// upgrade of its Python environment. The server's headers would then be wrong in ways that cause no error message.
absl::Status CheckRuntime();
// The same for given versions, such as "2.11.0". An empty `loaded` passes, since the version is then unknown.
absl::Status CheckRuntimeVersions(absl::string_view built_with, absl::string_view loaded);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_RUNTIME_H_
