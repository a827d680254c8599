#include "server/model/attention/attend.h"

#include <algorithm>
#include <limits>

#include "server/model/torch_compat.h"

namespace hookline {
namespace {

// The number of queries that are computed together without a fused kernel. No scores are computed for the keys after
// the block, and on a CPU the scores stay in the cache: 24 and 32 were the fastest of 16 to 64 and took three
// quarters of the time of 64. On an accelerator, launching kernels costs more than the scores that larger blocks waste.
constexpr int64_t kQueryBlock = 32;
constexpr int64_t kAcceleratorQueryBlock = 512;
// Batches come in few shapes, but a client can send any shape.
constexpr int64_t kMaxMaskBytes = int64_t{64} << 20;
// A fused kernel with a window needs the whole mask, positions^2 bytes, and computes what the mask hides.
constexpr int64_t kMaxMaskedPositions = 4096;

}  // namespace

const at::Tensor& CausalMasks::Hidden(int64_t queries, int64_t keys, int64_t ahead, int64_t reach) {
  if (bytes_ > kMaxMaskBytes) {
    masks_.clear();
    bytes_ = 0;
  }
  at::Tensor& mask = masks_[{queries, keys, ahead, reach}];
  if (!mask.defined()) {
    mask = Make(queries, keys, ahead, reach);
    bytes_ += queries * keys;
  }
  return mask;
}

// The mask is made on the device, so that no pass waits for an upload.
at::Tensor CausalMasks::Make(int64_t queries, int64_t keys, int64_t ahead, int64_t reach) const {
  const at::TensorOptions options = at::TensorOptions(device_).dtype(at::kInt);
  const at::Tensor distance = at::arange(queries, options).unsqueeze(1).add(ahead) - at::arange(keys, options);
  const at::Tensor later = distance < 0;
  return reach < 0 ? later : later.logical_or(distance > reach);
}

at::Tensor CausalMasks::Additive(int64_t positions, int64_t reach, at::ScalarType dtype) {
  at::Tensor& mask = additive_[{reach, dtype}];
  if (!mask.defined() || mask.size(0) < positions) {
    constexpr int64_t kAlignment = 8;  // values; a memory-efficient kernel otherwise copies the mask in every layer
    int64_t rounded = kAlignment;
    while (rounded < positions) rounded *= 2;
    mask = at::zeros({rounded, rounded}, at::TensorOptions(device_).dtype(dtype))
               .masked_fill_(Make(rounded, rounded, 0, reach), -std::numeric_limits<float>::infinity());
  }
  return mask.narrow(0, 0, positions).narrow(1, 0, positions);
}

namespace {

// Used where there is no fused kernel, or none that supports a soft cap or sinks.
at::Tensor AttendInBlocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttendOptions& options,
                          CausalMasks& masks) {
  const int64_t batch = q.size(0), positions = q.size(1), heads = q.size(2), width = q.size(3);
  const int64_t groups = k.size(2), in_group = heads / groups;
  const int64_t value_width = v.size(3), block = q.is_cpu() ? kQueryBlock : kAcceleratorQueryBlock;
  // Narrow scores would be rounded before the softmax; the CPU's products in float32 cost no more.
  const at::ScalarType type = q.is_cpu() ? at::kFloat : q.scalar_type();
  // The scale is applied to the keys, once; narrow keys would be rounded by it, so then it is applied to the scores.
  const bool wide = type == at::kFloat;
  // (batch * groups, width, positions) and (batch * groups, positions, width)
  const at::Tensor scaled = wide ? k.to(type) * options.scale : k;
  const at::Tensor keys = scaled.permute({0, 2, 3, 1}).reshape({batch * groups, width, positions});
  const at::Tensor values = v.to(type).permute({0, 2, 1, 3}).reshape({batch * groups, positions, value_width});
  at::Tensor out = at::empty({batch, positions, heads * value_width}, q.options());
  for (int64_t begin = 0; begin < positions; begin += block) {
    const int64_t count = std::min(block, positions - begin);
    const int64_t first_key = options.reach < 0 ? 0 : std::max<int64_t>(0, begin - options.reach);
    const int64_t key_count = begin + count - first_key;
    // (batch, count, groups, in_group, width) -> (batch * groups, in_group * count, width)
    const at::Tensor queries = q.narrow(1, begin, count)
                                   .to(type)
                                   .view({batch, count, groups, in_group, width})
                                   .permute({0, 2, 3, 1, 4})
                                   .reshape({batch * groups, in_group * count, width});
    at::Tensor scores = at::bmm(queries, keys.narrow(2, first_key, key_count));
    if (!wide) scores = scores.to(at::kFloat).mul_(options.scale);
    if (options.soft_cap != 0) scores.div_(options.soft_cap).tanh_().mul_(options.soft_cap);
    // Unless the reach ends among these keys, only those of the block itself can be hidden.
    const bool cut = options.reach >= 0 && begin + count - 1 - first_key > options.reach;
    const int64_t masked = cut ? key_count : count;
    scores.narrow(2, key_count - masked, masked)
        .view({batch * groups, in_group, count, masked})
        .masked_fill_(
            cut ? masks.Hidden(count, key_count, begin - first_key, options.reach) : masks.Hidden(count, count, 0, -1),
            -std::numeric_limits<float>::infinity());
    const at::Tensor weights = at::softmax(scores, -1).to(type);
    // (batch * groups, in_group * count, value_width) -> (batch, count, heads * value_width)
    at::Tensor mixed =
        at::bmm(weights, values.narrow(1, first_key, key_count)).view({batch, groups, in_group, count, value_width});
    if (options.sinks.defined()) {
      // The sink reduces the weights of all keys by the same factor: sum / (sum + exp(t)) = sigmoid(log sum - t).
      const at::Tensor log_sums = at::logsumexp(scores, -1).view({batch, groups, in_group, count, 1});
      mixed = mixed * at::sigmoid(log_sums - options.sinks.view({groups, in_group, 1, 1}));
    }
    out.narrow(1, begin, count)
        .view({batch, count, groups, in_group, value_width})
        .copy_(mixed.permute({0, 3, 1, 2, 4}));
  }
  return out;
}

}  // namespace

at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttendOptions& options,
                  CausalMasks& masks) {
  const int64_t positions = q.size(1);
  const bool windowed = options.reach >= 0 && options.reach + 1 < positions;
  if (!kHasFusedAttention || options.soft_cap != 0 || options.sinks.defined() ||
      (windowed && (q.is_cpu() || positions > kMaxMaskedPositions))) {
    return AttendInBlocks(q, k, v, options, masks);
  }
  at::Tensor mask;
  if (windowed) mask = masks.Additive(positions, options.reach, q.scalar_type());
  return CausalAttention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), options.scale, mask)
      .transpose(1, 2)
      .reshape({q.size(0), positions, q.size(2) * v.size(3)});
}

}  // namespace hookline
