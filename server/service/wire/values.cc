#include "server/service/wire/values.h"

#include <cstdint>
#include <cstring>

#include "server/base/half.h"

namespace hookline {

void AppendAsFloats(absl::string_view data, Dtype dtype, google::protobuf::RepeatedField<float>* values) {
  const auto count = static_cast<int>(data.size() / DtypeBytes(dtype));
  const int first = values->size();
  values->Resize(first + count, 0);
  float* out = values->mutable_data() + first;
  if (dtype == Dtype::kFloat32) {
    std::memcpy(out, data.data(), count * sizeof(float));
    return;
  }
  for (int i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data.data() + i * sizeof bits, sizeof bits);
    out[i] = dtype == Dtype::kBFloat16 ? FloatFromBFloat16(bits) : FloatFromFloat16(bits);
  }
}

}  // namespace hookline
