#include "client/cpp/row_layout.h"

#include "server/base/dtype_number.h"

namespace hookline::client {

std::optional<Dtype> FromProto(v1::Dtype dtype) { return DtypeOfNumber(dtype); }

RowLayout LayoutOf(const v1::CaptureStarted& started, int hook_point) {
  return {*FromProto(started.dtype()), started.hook_points(hook_point).width(), started.top_k()};
}

}  // namespace hookline::client
