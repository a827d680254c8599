// The differences between the versions of LibTorch that we build with: 1.13 (Debian 12) and 2.x.
#ifndef HOOKLINE_SERVER_MODEL_TORCH_COMPAT_H_
#define HOOKLINE_SERVER_MODEL_TORCH_COMPAT_H_

#include <ATen/ATen.h>
#include <torch/version.h>

#include <optional>

#include "absl/strings/match.h"

#define HOOKLINE_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

namespace hookline {

// True if CausalAttention exists and is faster than a product, a softmax and a product.
constexpr bool kHasFusedAttention = HOOKLINE_TORCH_AT_LEAST(2, 5);

// softmax(scale q k^T) v. q (batch, heads, positions, width), k and v with fewer heads where queries share them in
// groups. `visible` (positions, positions) says which keys a query sees; undefined: itself and all before it. Only
// where kHasFusedAttention.
inline at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                  const at::Tensor& visible) {
#if HOOKLINE_TORCH_AT_LEAST(2, 5)
  std::optional<at::Tensor> mask;
  if (visible.defined()) mask = visible;
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, /*is_causal=*/!visible.defined(), scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
#else
  (void)k, (void)v, (void)scale, (void)visible;
  return q;
#endif
}

// Returns whether `error` says that a device has no memory left. The CPU's allocator has no type of its own for it.
inline bool IsOutOfMemory(const c10::Error& error) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         absl::StrContains(error.what_without_backtrace(), "DefaultCPUAllocator");
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCH_COMPAT_H_
