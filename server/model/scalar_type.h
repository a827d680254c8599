// Maps types of activation values to LibTorch's.
#ifndef HOOKLINE_SERVER_MODEL_SCALAR_TYPE_H_
#define HOOKLINE_SERVER_MODEL_SCALAR_TYPE_H_

#include <c10/core/ScalarType.h>

#include "server/base/dtype.h"

namespace hookline {

// Returns the type of a tensor of such values. Types with a scale for each row, in which no model computes, are packed
// into bytes (pack_rows.h).
constexpr c10::ScalarType ScalarTypeOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return c10::ScalarType::Float;
    case Dtype::kBFloat16:
      return c10::ScalarType::BFloat16;
    case Dtype::kFloat16:
      return c10::ScalarType::Half;
    case Dtype::kFloat8E4M3:
    case Dtype::kInt8:
      break;
  }
  return c10::ScalarType::Byte;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_SCALAR_TYPE_H_
