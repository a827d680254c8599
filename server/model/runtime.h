// Facts about what LibTorch runs on: its threads and the library that computes its matrix products.
#ifndef HOOKLINE_SERVER_MODEL_RUNTIME_H_
#define HOOKLINE_SERVER_MODEL_RUNTIME_H_

#include <string>

namespace hookline {

struct RuntimeInfo {
  std::string libtorch;  // its version
  std::string blas;      // "OpenBLAS (PATH)", "MKL", ...
  // Products are tens of times slower with the reference implementation.
  bool reference_blas = false;
  int threads = 0;
};

// Sets the number of threads of one operation on the CPU; 0: one for each core. Call it before a model is loaded:
// left alone, LibTorch may use one.
RuntimeInfo ConfigureRuntime(int threads);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_RUNTIME_H_
