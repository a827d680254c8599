#include "server/model/runtime.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <link.h>
#include <torch/version.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/model/torch_compat.h"

namespace hookline {
namespace {

// Returns the loaded shared library that offers BLAS. Links are followed, since the names of Debian's alternatives do
// not show the library.
std::string FindBlas() {
  std::string found;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* out) {
        char real[PATH_MAX];
        if (library->dlpi_name == nullptr || realpath(library->dlpi_name, real) == nullptr) return 0;
        auto& path = *static_cast<std::string*>(out);
        if (absl::StrContains(real, "openblas") || absl::StrContains(real, "libblis") ||
            absl::StrContains(real, "libmkl")) {
          path = real;
          return 1;
        }
        if (absl::StrContains(real, "libblas")) path = real;
        return 0;
      },
      &found);
  return found;
}

}  // namespace

RuntimeInfo ConfigureRuntime(int threads, int executors) {
  const int all = threads > 0 ? threads : static_cast<int>(std::thread::hardware_concurrency());
  at::set_num_threads(std::max(1, all / executors));
  PreferAttentionWithoutPlans();
  RuntimeInfo info;
  info.libtorch = TORCH_VERSION;
  info.threads = at::get_num_threads();
  const std::string path = FindBlas();
  if (absl::StrContains(path, "openblas")) {
    info.blas = absl::StrCat("OpenBLAS (", path, ")");
  } else if (at::hasMKL()) {
    info.blas = "MKL";
  } else if (path.empty()) {
    info.blas = "LibTorch's own";
  } else {
    info.reference_blas = absl::StrContains(path, "/libblas");
    info.blas = absl::StrCat(info.reference_blas ? "the reference BLAS (" : "(", path, ")");
  }
  return info;
}

absl::Status CheckRuntime() { return CheckRuntimeVersions(TORCH_VERSION, LoadedTorchVersion()); }

absl::Status CheckRuntimeVersions(absl::string_view built_with, absl::string_view loaded) {
  if (loaded.empty() || loaded == built_with) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("this server was built with LibTorch ", built_with,
                                                    ", but LibTorch ", loaded,
                                                    " is loaded; build it again, or install version ", built_with));
}

}  // namespace hookline
