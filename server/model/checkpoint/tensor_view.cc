#include "server/model/checkpoint/tensor_view.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hookline {

std::vector<int64_t> ContiguousStrides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  uint64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = static_cast<int64_t>(stride & 0x7fffffffffffffff);
    stride *= static_cast<uint64_t>(std::max<int64_t>(1, sizes[i]));
  }
  return strides;
}

absl::StatusOr<at::Tensor> ViewTensor(std::shared_ptr<const MappedFile> file, absl::Span<const uint8_t> bytes,
                                      at::ScalarType type, int64_t offset, const std::vector<int64_t>& sizes,
                                      const std::vector<int64_t>& strides) {
  const int64_t item = static_cast<int64_t>(c10::elementSize(type));
  const int64_t available = static_cast<int64_t>(bytes.size()) / item;
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(what, " (sizes ", absl::StrJoin(sizes, "x"), ", strides ",
                                                      absl::StrJoin(strides, ","), ", offset ", offset, ", storage of ",
                                                      available, " values)"));
  };
  if (sizes.size() != strides.size()) return bad("has sizes and strides of different number");
  if (offset < 0 || offset > available) return bad("begins outside its storage");
  int64_t values = 1;
  int64_t last = offset;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0 || strides[i] < 0) return bad("has a negative size or stride");
    if (sizes[i] == 0) return bad("is empty");
    if (__builtin_mul_overflow(values, sizes[i], &values)) return bad("is larger than any file");
    int64_t reach;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach) || __builtin_add_overflow(last, reach, &last)) {
      return bad("reaches outside its storage");
    }
  }
  if (last >= available) return bad("reaches outside its storage");
  if (values > available) return bad("has more values than its storage");

  const uint8_t* data = bytes.data() + offset * item;
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(item) != 0) {
    at::Tensor storage = at::empty({available - offset}, type);
    std::memcpy(storage.data_ptr(), data, static_cast<size_t>((available - offset) * item));
    return storage.as_strided(sizes, strides);
  }
  // LibTorch takes a pointer that it could write to; the map is read-only, and nobody writes to a checkpoint's tensors.
  return at::from_blob(
      const_cast<uint8_t*>(data), sizes, strides, [file = std::move(file)](void*) {}, type);
}

}  // namespace hookline
