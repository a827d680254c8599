// Hides the differences between the versions of LibTorch that we build with: 1.13 (Debian 12) and 2.x.
#ifndef HOOKLINE_SERVER_MODEL_TORCH_COMPAT_H_
#define HOOKLINE_SERVER_MODEL_TORCH_COMPAT_H_

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "absl/strings/match.h"

#define HOOKLINE_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

#if HOOKLINE_TORCH_AT_LEAST(2, 9)
#include <c10/core/CachingDeviceAllocator.h>
#endif

namespace hookline {

// True if CausalAttention exists and is faster than a product, a softmax and a product.
constexpr bool kHasFusedAttention = HOOKLINE_TORCH_AT_LEAST(2, 5);

// Returns softmax(scale q k^T + mask) v. q is (batch, heads, positions, width); k and v can have fewer heads, which
// groups of queries share. `mask` is (positions, positions) in q's dtype; if it is undefined, a query sees itself and
// all positions before it. Call it only if kHasFusedAttention.
inline at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                  const at::Tensor& mask) {
#if HOOKLINE_TORCH_AT_LEAST(2, 5)
  std::optional<at::Tensor> added;
  if (mask.defined()) added = mask;
  at::Tensor keys = k, values = v;
  bool grouped = q.size(1) != k.size(1);
  // A GPU's only kernel that supports groups is flash attention, which needs 16-bit types and no mask. Otherwise
  // LibTorch would fall back to a product that holds all scores at once.
  if (grouped && !q.is_cpu() && (mask.defined() || q.scalar_type() == at::kFloat)) {
    const auto expanded = [&](const at::Tensor& x) {
      return x.unsqueeze(2)
          .expand({-1, -1, q.size(1) / x.size(1), -1, -1})
          .reshape({x.size(0), q.size(1), x.size(2), x.size(3)});
    };
    keys = expanded(k);
    values = expanded(v);
    grouped = false;
  }
  return at::scaled_dot_product_attention(q, keys, values, added, /*dropout_p=*/0.0, /*is_causal=*/!mask.defined(),
                                          scale,
                                          /*enable_gqa=*/grouped);
#else
  (void)k, (void)v, (void)scale, (void)mask;
  return q;
#endif
}

// True if RmsNorm exists, which accelerators compute in one kernel.
constexpr bool kHasFusedRmsNorm = HOOKLINE_TORCH_AT_LEAST(2, 9);

// Returns x / sqrt(mean(x^2) + epsilon) over the last axis, times `weight` (x's dtype, or undefined), computed in
// float32 and rounded once. Call it only if kHasFusedRmsNorm.
inline at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
#if HOOKLINE_TORCH_AT_LEAST(2, 9)
  std::optional<at::Tensor> multiplied;
  if (weight.defined()) multiplied = weight;
  return std::get<0>(at::_fused_rms_norm(x, {x.size(-1)}, multiplied, epsilon));
#else
  (void)weight, (void)epsilon;
  return x;
#endif
}

// Turns off cuDNN's attention. It makes a plan for every new shape, which takes hundreds of milliseconds, and batches
// here have new shapes all the time. Flash attention, which replaces it, needs no plan. Padding batches to few shapes
// would compute more.
inline void PreferAttentionWithoutPlans() {
#if HOOKLINE_TORCH_AT_LEAST(2, 5)
  at::globalContext().setSDPUseCuDNN(false);
#endif
}

// Returns the bytes of all tensors on `device`, not the CPU; 0 if LibTorch gives them only through CUDA's headers.
// Throws LibTorch's exceptions.
inline int64_t TensorBytesOn(const c10::Device& device) {
#if HOOKLINE_TORCH_AT_LEAST(2, 9)
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].current;
#else
  (void)device;
  return 0;
#endif
}

// Returns the free bytes that the driver of `device`, not the CPU, reports; nullopt if LibTorch gives them only through
// CUDA's headers. Throws LibTorch's exceptions.
inline std::optional<int64_t> FreeBytesOn(const c10::Device& device) {
#if HOOKLINE_TORCH_AT_LEAST(2, 11)
  at::empty({1}, at::TensorOptions(device));  // initializes the device
  return static_cast<int64_t>(c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
#else
  (void)device;
  return std::nullopt;
#endif
}

// Returns the version of the loaded LibTorch; empty if it is unknown. A wheel can be replaced after the server was
// built with it, and then the server's headers are wrong in ways that cause no error message.
inline std::string LoadedTorchVersion() {
  const std::string key = "TORCH_VERSION=", settings = at::show_config();
  const size_t found = settings.find(key);
  if (found == std::string::npos) return "";
  const size_t begin = found + key.size();
  return settings.substr(begin, settings.find_first_of(", \n", begin) - begin);
}

// Returns whether `error` says that a device is out of memory. The CPU's allocator and cuBLAS's workspace have no
// exception type for this.
inline bool IsOutOfMemory(const c10::Error& error) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         absl::StrContains(error.what_without_backtrace(), "DefaultCPUAllocator") ||
         absl::StrContains(error.what_without_backtrace(), "CUBLAS_STATUS_ALLOC_FAILED");
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCH_COMPAT_H_
