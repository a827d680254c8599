// The place of a tensor's values in a file. The readers of checkpoints return it instead of the values.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_STORED_TENSOR_H_
#define HOOKLINE_SERVER_MODEL_LOAD_STORED_TENSOR_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/base/input_file.h"

namespace hookline {

// A range of a file that holds one tensor or several.
struct StoredRange {
  std::shared_ptr<const InputFile> file;
  int64_t offset = 0;
  int64_t bytes = 0;
  std::optional<uint32_t> crc;  // CRC-32 of the whole range, if the format has one
};

// Shape and type have the interface of at::Tensor.
class StoredTensor {
 public:
  // Makes a tensor of values of `type` in `storage`, with `offset` and `strides` in values. Checks, without overflow,
  // that it stays inside the storage and has no more values than it (so that making it contiguous stays bounded). The
  // error is a sentence about the tensor.
  static absl::StatusOr<StoredTensor> Make(StoredRange storage, at::ScalarType type, int64_t offset,
                                           std::vector<int64_t> sizes, std::vector<int64_t> strides);
  // The same for a contiguous tensor that begins where the storage does.
  static absl::StatusOr<StoredTensor> MakeContiguous(StoredRange storage, at::ScalarType type,
                                                     std::vector<int64_t> sizes);

  at::IntArrayRef sizes() const { return sizes_; }
  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  // `axis` is from 0 to dim() - 1.
  int64_t size(int64_t axis) const { return sizes_[static_cast<size_t>(axis)]; }
  int64_t numel() const;
  at::ScalarType scalar_type() const { return type_; }
  bool is_floating_point() const { return at::isFloatingType(type_); }

  at::IntArrayRef strides() const { return strides_; }
  bool is_contiguous() const;
  const StoredRange& storage() const { return storage_; }
  // The range from the first to the last of the values.
  int64_t first_byte() const { return storage_.offset + offset_ * item_bytes(); }
  int64_t span_bytes() const { return span_values_ * item_bytes(); }

 private:
  int64_t item_bytes() const { return static_cast<int64_t>(c10::elementSize(type_)); }

  StoredRange storage_;
  at::ScalarType type_ = at::kFloat;
  int64_t offset_ = 0;
  int64_t span_values_ = 0;
  std::vector<int64_t> sizes_;
  std::vector<int64_t> strides_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_STORED_TENSOR_H_
