#include "server/service/wire/chunk_values.h"

#include <cstdint>

#include "server/base/row_values.h"

namespace hookline {
namespace {

// Makes room for `count` more entries and returns where they begin.
template <typename T>
T* Extend(google::protobuf::RepeatedField<T>* field, int64_t count) {
  const int first = field->size();
  field->Resize(first + static_cast<int>(count), T{});
  return field->mutable_data() + first;
}

}  // namespace

void AppendAsNumbers(absl::string_view data, const RowLayout& layout, v1::ActivationChunk* chunk) {
  const auto* row = reinterpret_cast<const uint8_t*>(data.data());
  const int64_t rows = static_cast<int64_t>(data.size()) / layout.bytes();
  float* values = Extend(chunk->mutable_values(), rows * layout.numbers());
  uint32_t* indices = Extend(chunk->mutable_indices(), rows * layout.top_k);
  for (int64_t i = 0; i < rows; ++i, row += layout.bytes()) {
    ReadValues(layout, row, values);
    ReadIndices(layout, row, indices);
    values += layout.numbers();
    indices += layout.top_k;
  }
}

}  // namespace hookline
