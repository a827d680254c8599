// The element types of activation values, in memory and on the wire.
#ifndef HOOKLINE_SERVER_BASE_DTYPE_H_
#define HOOKLINE_SERVER_BASE_DTYPE_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace hookline {

// A model computes in one of the first three. The last two come with one float32 scale per row (row_layout.h).
enum class Dtype { kFloat32, kBFloat16, kFloat16, kFloat8E4M3, kInt8 };

// Returns whether rows of this type begin with a scale.
constexpr bool HasRowScale(Dtype dtype) { return dtype == Dtype::kFloat8E4M3 || dtype == Dtype::kInt8; }

constexpr int64_t DtypeBytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : HasRowScale(dtype) ? 1 : 2; }

// Returns the name in flags, logs and manifests: `float32`, `bfloat16`, `float16`, `float8_e4m3` or `int8`.
constexpr absl::string_view DtypeName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kFloat16:
      return "float16";
    case Dtype::kFloat8E4M3:
      return "float8_e4m3";
    case Dtype::kInt8:
      return "int8";
  }
  return "";
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_DTYPE_H_
