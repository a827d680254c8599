// Facts about what LibTorch runs on: its threads and the library that computes its matrix products.
#ifndef HOOKLINE_SERVER_MODEL_RUNTIME_H_
#define HOOKLINE_SERVER_MODEL_RUNTIME_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline {

struct RuntimeInfo {
  std::string libtorch;  // its version
  std::string blas;      // "OpenBLAS (PATH)", "MKL", ...
  // Products are tens of times slower with the reference implementation.
  bool reference_blas = false;
  int threads = 0;
};

// Sets what kernels an accelerator uses, and the number of threads of one operation on the CPU: `threads` (0: one for
// each core) are divided equally among `executors` that compute at the same time, of which each gets one at least. Call
// it before a model is loaded: left alone, LibTorch may use one thread.
RuntimeInfo ConfigureRuntime(int threads, int executors = 1);

// FAILED_PRECONDITION where the LibTorch that is loaded is not the one that the server was built with, as after an
// upgrade of the environment that it lies in: its headers would be wrong in ways that no error shows.
absl::Status CheckRuntime();
// The same for versions as they are written, "2.11.0"; an empty `loaded` passes, because it does not tell.
absl::Status CheckRuntimeVersions(absl::string_view built_with, absl::string_view loaded);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_RUNTIME_H_
