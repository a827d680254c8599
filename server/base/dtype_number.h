// The numbers by which the protocol names element types (Dtype in types.proto), for both ends of the wire.
#ifndef HOOKLINE_SERVER_BASE_DTYPE_NUMBER_H_
#define HOOKLINE_SERVER_BASE_DTYPE_NUMBER_H_

#include <optional>

#include "server/base/dtype.h"

namespace hookline {

constexpr int DtypeNumber(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return 1;
    case Dtype::kBFloat16:
      return 2;
    case Dtype::kFloat16:
      return 3;
    case Dtype::kFloat8E4M3:
      return 4;
    case Dtype::kInt8:
      return 5;
  }
  return 0;
}

// Returns nothing for 0, which is DTYPE_UNSPECIFIED, and for numbers that have no meaning yet.
constexpr std::optional<Dtype> DtypeOfNumber(int number) {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat8E4M3, Dtype::kInt8}) {
    if (DtypeNumber(dtype) == number) return dtype;
  }
  return std::nullopt;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_DTYPE_NUMBER_H_
