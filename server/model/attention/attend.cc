#include "server/model/attention/attend.h"

#include <algorithm>
#include <limits>

#include "server/model/torch_compat.h"

namespace hookline {
namespace {

// Queries that are computed together where there is no fused kernel: of the keys after them nothing is computed, and
// their scores stay in the cache.
constexpr int64_t kQueryBlock = 64;
// Batches come in few shapes, but a client can send any.
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
    const at::Tensor distance =
        (at::arange(queries, at::kLong).unsqueeze(1) + ahead) - at::arange(keys, at::kLong).unsqueeze(0);
    mask = distance < 0;
    if (reach >= 0) mask = mask.logical_or(distance > reach);
    mask = mask.to(device_);
    bytes_ += queries * keys;
  }
  return mask;
}

namespace {

// Used where there is no fused kernel, or none that supports a soft cap or sinks.
at::Tensor AttendInBlocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttendOptions& options,
                          CausalMasks& masks) {
  const int64_t batch = q.size(0), positions = q.size(1), heads = q.size(2), width = q.size(3);
  const int64_t groups = k.size(2), in_group = heads / groups;
  const int64_t value_width = v.size(3);
  // Narrow scores would be rounded before the softmax; the CPU's products in float32 cost no more.
  const at::ScalarType type = q.is_cpu() ? at::kFloat : q.scalar_type();
  // The scale goes to the keys, once; where they are narrow it would be rounded, so there it goes to the scores.
  const bool wide = type == at::kFloat;
  // (batch * groups, width, positions) and (batch * groups, positions, width)
  const at::Tensor scaled = wide ? k.to(type) * options.scale : k;
  const at::Tensor keys = scaled.permute({0, 2, 3, 1}).reshape({batch * groups, width, positions});
  const at::Tensor values = v.to(type).permute({0, 2, 1, 3}).reshape({batch * groups, positions, value_width});
  at::Tensor out = at::empty({batch, positions, heads * value_width}, q.options());
  for (int64_t begin = 0; begin < positions; begin += kQueryBlock) {
    const int64_t count = std::min(kQueryBlock, positions - begin);
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
      // The sink takes its share from all keys alike: what is left is sum / (sum + exp(t)) = sigmoid(log sum - t).
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
  at::Tensor visible;
  if (windowed) visible = masks.Hidden(positions, positions, 0, options.reach).logical_not();
  return CausalAttention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), options.scale, visible)
      .transpose(1, 2)
      .reshape({q.size(0), positions, q.size(2) * v.size(3)});
}

}  // namespace hookline
