#include "server/model/load/state_dict.h"

#include <limits>

#include "server/base/checked_math.h"

namespace hookline {

int64_t WeightBytes(const StateDict& weights, at::ScalarType dtype) {
  CheckedInt64 bytes = 0;
  for (const auto& [name, tensor] : weights.tensors) {
    bytes += CheckedInt64(tensor.numel()) * c10::elementSize(tensor.is_floating_point() ? dtype : tensor.scalar_type());
  }
  return bytes.value().value_or(std::numeric_limits<int64_t>::max());
}

}  // namespace hookline
