#include "server/model/checkpoint/state_dict.h"

#include <xxhash.h>

#include "absl/strings/str_cat.h"

namespace hookline {

std::string WeightsFingerprint(const StateDict& weights, absl::string_view configuration) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  // Each text with its length, so that no two lists of texts give the same bytes.
  const auto add = [state](absl::string_view text) {
    const uint64_t size = text.size();
    XXH3_128bits_update(state, &size, sizeof(size));
    XXH3_128bits_update(state, text.data(), text.size());
  };
  for (const auto& [name, tensor] : weights.tensors) {
    add(name);
    add(c10::toString(tensor.scalar_type()));
    XXH3_128bits_update(state, tensor.sizes().data(), tensor.sizes().size() * sizeof(int64_t));
    const at::Tensor bytes = tensor.contiguous();
    XXH3_128bits_update(state, bytes.data_ptr(), bytes.nbytes());
  }
  add(configuration);
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16), absl::Hex(hash.low64, absl::kZeroPad16));
}

int64_t WeightBytes(const StateDict& weights, at::ScalarType dtype) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : weights.tensors) {
    bytes += tensor.numel() *
             static_cast<int64_t>(c10::elementSize(tensor.is_floating_point() ? dtype : tensor.scalar_type()));
  }
  return bytes;
}

}  // namespace hookline
