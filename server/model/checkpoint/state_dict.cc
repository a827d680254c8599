#include "server/model/checkpoint/state_dict.h"

#include <ATen/Parallel.h>
#include <xxhash.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

// Of each tensor's values, in the order of the map. By several threads: this is the first to touch a mapped file, so it
// takes as long as all the rest of loading.
std::vector<XXH128_hash_t> HashValues(const StateDict& weights) {
  std::vector<const at::Tensor*> tensors;
  for (const auto& [name, tensor] : weights.tensors) tensors.push_back(&tensor);
  std::vector<XXH128_hash_t> hashes(tensors.size());
  std::atomic<size_t> next = 0;
  const auto hash = [&] {
    for (size_t i = next++; i < tensors.size(); i = next++) {
      const at::Tensor values = tensors[i]->contiguous();
      hashes[i] = XXH3_128bits(values.data_ptr(), values.nbytes());
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < at::get_num_threads(); ++i) threads.emplace_back(hash);
  hash();
  for (std::thread& thread : threads) thread.join();
  return hashes;
}

}  // namespace

std::string WeightsFingerprint(const StateDict& weights, absl::string_view configuration) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  // Each text with its length, so that no two lists of texts give the same bytes.
  const auto add = [state](absl::string_view text) {
    const uint64_t size = text.size();
    XXH3_128bits_update(state, &size, sizeof(size));
    XXH3_128bits_update(state, text.data(), text.size());
  };
  size_t index = 0;
  const std::vector<XXH128_hash_t> hashes = HashValues(weights);
  for (const auto& [name, tensor] : weights.tensors) {
    add(name);
    add(c10::toString(tensor.scalar_type()));
    XXH3_128bits_update(state, tensor.sizes().data(), tensor.sizes().size() * sizeof(int64_t));
    XXH3_128bits_update(state, &hashes[index++], sizeof(XXH128_hash_t));
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
