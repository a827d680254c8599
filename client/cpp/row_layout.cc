#include "client/cpp/row_layout.h"

namespace hookline::client {

std::optional<Dtype> FromProto(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return Dtype::kFloat32;
    case v1::DTYPE_BFLOAT16:
      return Dtype::kBFloat16;
    case v1::DTYPE_FLOAT16:
      return Dtype::kFloat16;
    case v1::DTYPE_FLOAT8_E4M3:
      return Dtype::kFloat8E4M3;
    case v1::DTYPE_INT8:
      return Dtype::kInt8;
    default:
      return std::nullopt;
  }
}

RowLayout LayoutOf(const v1::CaptureStarted& started, int hook_point) {
  return {*FromProto(started.dtype()), started.hook_points(hook_point).width(), started.top_k()};
}

}  // namespace hookline::client
