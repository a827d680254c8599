#include "server/model/load/stored_tensor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/checked_math.h"

namespace hookline {
namespace {

// Returns nullopt for a tensor that is larger than any file.
std::optional<std::vector<int64_t>> ContiguousStrides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  CheckedInt64 stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (!stride.value()) return std::nullopt;
    strides[i] = *stride.value();
    stride *= std::max<int64_t>(1, sizes[i]);
  }
  return strides;
}

}  // namespace

absl::StatusOr<StoredTensor> StoredTensor::Make(StoredRange storage, at::ScalarType type, int64_t offset,
                                                std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  StoredTensor tensor;
  tensor.storage_ = std::move(storage);
  tensor.type_ = type;
  tensor.offset_ = offset;
  tensor.sizes_ = std::move(sizes);
  tensor.strides_ = std::move(strides);
  const int64_t available = tensor.storage_.bytes / tensor.item_bytes();
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(what, " (sizes ", absl::StrJoin(tensor.sizes_, "x"), ", strides ",
                                                      absl::StrJoin(tensor.strides_, ","), ", offset ", offset,
                                                      ", storage of ", available, " values)"));
  };
  if (tensor.sizes_.size() != tensor.strides_.size()) return bad("has different numbers of sizes and strides");
  if (offset < 0 || offset > available) return bad("begins outside its storage");
  CheckedInt64 values = 1, span = 1;
  for (size_t i = 0; i < tensor.sizes_.size(); ++i) {
    if (tensor.sizes_[i] < 0 || tensor.strides_[i] < 0) return bad("has a negative size or stride");
    if (tensor.sizes_[i] == 0) return bad("is empty");
    values *= tensor.sizes_[i];
    span += CheckedInt64(tensor.sizes_[i] - 1) * tensor.strides_[i];
  }
  if (!values.value()) return bad("is larger than any file");
  if (!RangeFits(offset, span, available)) return bad("reaches outside its storage");
  if (*values.value() > available) return bad("has more values than its storage");
  tensor.span_values_ = *span.value();
  return tensor;
}

absl::StatusOr<StoredTensor> StoredTensor::MakeContiguous(StoredRange storage, at::ScalarType type,
                                                          std::vector<int64_t> sizes) {
  std::optional<std::vector<int64_t>> strides = ContiguousStrides(sizes);
  if (!strides) return absl::FailedPreconditionError("is larger than any file");
  return Make(std::move(storage), type, /*offset=*/0, std::move(sizes), *std::move(strides));
}

int64_t StoredTensor::numel() const {
  int64_t values = 1;
  for (const int64_t size : sizes_) values *= size;
  return values;
}

bool StoredTensor::is_contiguous() const {
  int64_t stride = 1;
  for (size_t i = sizes_.size(); i-- > 0;) {
    if (sizes_[i] != 1 && strides_[i] != stride) return false;
    stride *= sizes_[i];
  }
  return true;
}

}  // namespace hookline
