// Tensors over bytes of a mapped file.
#ifndef HOOKLINE_SERVER_MODEL_CHECKPOINT_TENSOR_VIEW_H_
#define HOOKLINE_SERVER_MODEL_CHECKPOINT_TENSOR_VIEW_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/mapped_file.h"

namespace hookline {

// A view of `bytes`, which lie in `file`, with `offset` and `strides` in values. Checks, without overflow whatever the
// numbers, that it stays inside and that it has no more values than there are bytes for (so that making it contiguous
// stays bounded). Bytes that are not aligned for the type are copied. The error is a sentence about the tensor.
absl::StatusOr<at::Tensor> ViewTensor(std::shared_ptr<const MappedFile> file, absl::Span<const uint8_t> bytes,
                                      at::ScalarType type, int64_t offset, const std::vector<int64_t>& sizes,
                                      const std::vector<int64_t>& strides);

// Strides of a contiguous tensor; what overflows is wrong, but ViewTensor refuses such sizes anyway.
std::vector<int64_t> ContiguousStrides(const std::vector<int64_t>& sizes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CHECKPOINT_TENSOR_VIEW_H_
