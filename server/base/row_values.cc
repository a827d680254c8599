#include "server/base/row_values.h"

namespace hookline {

float RowScale(const RowLayout& layout, const uint8_t* row) {
  return layout.scale_bytes() == 0 ? 1.0f : Float32Reader::Read(row);
}

void ReadValues(const RowLayout& layout, const uint8_t* row, float* values) {
  const float scale = RowScale(layout, row);
  const uint8_t* numbers = row + layout.numbers_offset();
  WithReader(layout.dtype, [&](auto reader) {
    using Reader = decltype(reader);
    for (int64_t j = 0; j < layout.numbers(); ++j) {
      const float number = Reader::Read(numbers + j * Reader::kBytes);
      values[j] = layout.scale_bytes() == 0 ? number : scale * number;
    }
  });
}

void ReadIndices(const RowLayout& layout, const uint8_t* row, uint32_t* indices) {
  if (layout.top_k == 0) return;
  std::memcpy(indices, row + layout.scale_bytes(), static_cast<size_t>(layout.top_k) * sizeof(*indices));
}

}  // namespace hookline
