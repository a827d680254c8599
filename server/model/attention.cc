#include "server/model/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

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

// Frequencies in float32 and in this order, as the models' own code has them: the last bit shows at high positions.
at::Tensor Frequencies(const RotaryConfig& config) {
  const at::Tensor exponents = at::arange(0, config.dims, 2, at::kFloat) / static_cast<double>(config.dims);
  at::Tensor frequencies = at::pow(at::Scalar(config.base), exponents).reciprocal();
  switch (config.scaling) {
    case RotaryConfig::Scaling::kNone:
      return frequencies;
    case RotaryConfig::Scaling::kLinear:
      return frequencies / config.factor;
    case RotaryConfig::Scaling::kLlama3: {
      const at::Tensor wavelengths = 2 * M_PI / frequencies;
      const at::Tensor stretched = frequencies / config.factor;
      const at::Tensor share = (config.original_context / wavelengths - config.low_frequency_factor) /
                               (config.high_frequency_factor - config.low_frequency_factor);
      const at::Tensor between = (1 - share) * stretched + share * frequencies;
      at::Tensor scaled =
          at::where(wavelengths > config.original_context / config.low_frequency_factor, stretched, between);
      return at::where(wavelengths < config.original_context / config.high_frequency_factor, frequencies, scaled);
    }
  }
  return frequencies;
}

}  // namespace

RotaryTables::RotaryTables(std::vector<RotaryConfig> configs, at::Device device, at::ScalarType dtype)
    : configs_(std::move(configs)), device_(device), dtype_(dtype), tables_(configs_.size()) {}

void RotaryTables::Grow(int index, int64_t positions) {
  Table& table = tables_[index];
  if (table.cos.defined() && table.cos.size(0) >= positions) return;
  // On the CPU, whatever the device: another library's sine differs in the last bit.
  const at::Tensor angles = at::outer(at::arange(0, positions, at::kFloat), Frequencies(configs_[index])).unsqueeze(1);
  table.cos = angles.cos().to(device_, dtype_);
  table.sin = angles.sin().to(device_, dtype_);
}

at::Tensor RotaryTables::Rotate(int index, const at::Tensor& x) {
  const int64_t positions = x.size(1);
  Grow(index, positions);
  const RotaryConfig& config = configs_[index];
  const at::Tensor cos = tables_[index].cos.narrow(0, 0, positions);
  const at::Tensor sin = tables_[index].sin.narrow(0, 0, positions);
  const int64_t half = config.dims / 2;
  const at::Tensor a = x.narrow(-1, 0, half);
  const at::Tensor b = x.narrow(-1, half, half);
  const double sign = config.clockwise ? -1 : 1;
  at::Tensor turned_a = at::mul(a, cos).addcmul_(b, sin, -sign);
  at::Tensor turned_b = at::mul(b, cos).addcmul_(a, sin, sign);
  if (config.dims == x.size(-1)) return at::cat({turned_a, turned_b}, -1);
  return at::cat({turned_a, turned_b, x.narrow(-1, config.dims, x.size(-1) - config.dims)}, -1);
}

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

// The same without a fused kernel, or where it has none for the soft cap.
at::Tensor AttendInBlocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionConfig& config,
                          CausalMasks& masks) {
  const int64_t batch = q.size(0), positions = q.size(1), heads = q.size(2), width = q.size(3);
  const int64_t groups = k.size(2), in_group = heads / groups;
  // Narrow scores would be rounded before the softmax; the CPU's products in float32 cost no more.
  const at::ScalarType type = q.is_cpu() ? at::kFloat : q.scalar_type();
  // The scale goes to the keys, once; where they are narrow it would be rounded, so there it goes to the scores.
  const bool wide = type == at::kFloat;
  // (batch * groups, width, positions) and (batch * groups, positions, width)
  const at::Tensor scaled = wide ? k.to(type) * config.scale : k;
  const at::Tensor keys = scaled.permute({0, 2, 3, 1}).reshape({batch * groups, width, positions});
  const at::Tensor values = v.to(type).permute({0, 2, 1, 3}).reshape({batch * groups, positions, width});
  at::Tensor out = at::empty({batch, positions, heads * width}, q.options());
  for (int64_t begin = 0; begin < positions; begin += kQueryBlock) {
    const int64_t count = std::min(kQueryBlock, positions - begin);
    const int64_t first_key = config.reach < 0 ? 0 : std::max<int64_t>(0, begin - config.reach);
    const int64_t key_count = begin + count - first_key;
    // (batch, count, groups, in_group, width) -> (batch * groups, in_group * count, width)
    const at::Tensor queries = q.narrow(1, begin, count)
                                   .to(type)
                                   .view({batch, count, groups, in_group, width})
                                   .permute({0, 2, 3, 1, 4})
                                   .reshape({batch * groups, in_group * count, width});
    at::Tensor scores = at::bmm(queries, keys.narrow(2, first_key, key_count));
    if (!wide) scores = scores.to(at::kFloat).mul_(config.scale);
    if (config.soft_cap != 0) scores.div_(config.soft_cap).tanh_().mul_(config.soft_cap);
    // Unless the reach ends among these keys, only those of the block itself can be hidden.
    const bool cut = config.reach >= 0 && begin + count - 1 - first_key > config.reach;
    const int64_t masked = cut ? key_count : count;
    scores.narrow(2, key_count - masked, masked)
        .view({batch * groups, in_group, count, masked})
        .masked_fill_(
            cut ? masks.Hidden(count, key_count, begin - first_key, config.reach) : masks.Hidden(count, count, 0, -1),
            -std::numeric_limits<float>::infinity());
    at::Tensor weights = at::softmax(scores, -1).to(type);
    // (batch * groups, in_group * count, width) -> (batch, count, heads * width)
    const at::Tensor mixed = at::bmm(weights, values.narrow(1, first_key, key_count))
                                 .view({batch, groups, in_group, count, width})
                                 .permute({0, 3, 1, 2, 4});
    out.narrow(1, begin, count).view({batch, count, groups, in_group, width}).copy_(mixed);
  }
  return out;
}

}  // namespace

at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionConfig& config,
                  CausalMasks& masks) {
  const int64_t positions = q.size(1);
  const bool windowed = config.reach >= 0 && config.reach + 1 < positions;
  if (!kHasFusedAttention || config.soft_cap != 0 || (windowed && (q.is_cpu() || positions > kMaxMaskedPositions))) {
    return AttendInBlocks(q, k, v, config, masks);
  }
  at::Tensor visible;
  if (windowed) visible = masks.Hidden(positions, positions, 0, config.reach).logical_not();
  return CausalAttention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), config.scale, visible)
      .transpose(1, 2)
      .reshape({q.size(0), positions, q.size(2) * q.size(3)});
}

}  // namespace hookline
