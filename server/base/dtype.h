// The element types of activation values, in memory and on the wire.
#ifndef HOOKLINE_SERVER_BASE_DTYPE_H_
#define HOOKLINE_SERVER_BASE_DTYPE_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace hookline {

enum class Dtype { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t DtypeBytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// `float32`, `bfloat16`, `float16`: as flags, logs and manifests name them.
constexpr absl::string_view DtypeName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kFloat16:
      return "float16";
  }
  return "";
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_DTYPE_H_
