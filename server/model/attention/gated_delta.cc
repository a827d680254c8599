#include "server/model/attention/gated_delta.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "server/model/layers.h"

namespace hookline {
namespace {

// Larger chunks mean fewer and larger products, but the cost of their triangular part grows with the square.
constexpr int64_t kChunk = 64;
// Keeps the result for a head of zeros finite.
constexpr double kLengthEpsilon = 1e-6;

// The depthwise convolution of u (B, T, channels) in float32 with weights (channels, kernel). Padding on the right
// never affects an earlier row, since convolution and recurrence only look back.
at::Tensor Convolve(const at::Tensor& u, const at::Tensor& weights) {
  const int64_t positions = u.size(1), kernel = weights.size(1);
  at::Tensor sum = u * weights.select(1, kernel - 1);
  for (int64_t back = 1; back < std::min(kernel, positions); ++back) {
    const int64_t count = positions - back;
    sum.narrow(1, back, count).addcmul_(u.narrow(1, 0, count), weights.select(1, kernel - 1 - back));
  }
  return sum;
}

at::Tensor UnitLength(const at::Tensor& x) {
  return x * (x.square().sum(-1, /*keepdim=*/true) + kLengthEpsilon).rsqrt();
}

// (B, T, heads, width) -> (B * heads, T, width)
at::Tensor ByHead(const at::Tensor& x) {
  return x.transpose(1, 2).reshape({x.size(0) * x.size(2), x.size(1), x.size(3)});
}

}  // namespace

at::Tensor GatedDeltaRule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                          const at::Tensor& beta, int64_t chunk) {
  const int64_t sequences = q.size(0), positions = q.size(1), key_width = q.size(2), value_width = v.size(2);
  chunk = std::min(chunk, positions);
  const int64_t chunks = (positions + chunk - 1) / chunk, padding = chunks * chunk - positions;
  // Padded positions write nothing and forget nothing. The result is (sequences * chunks, chunk, width).
  const auto in_chunks = [&](const at::Tensor& x) {
    return at::constant_pad_nd(x, {0, 0, 0, padding}).view({sequences * chunks, chunk, x.size(2)});
  };
  const at::Tensor queries = in_chunks(q), keys = in_chunks(k), writes = in_chunks(beta.unsqueeze(2));
  const at::Tensor decay = in_chunks(log_decay.unsqueeze(2)).cumsum(1);  // G
  // exp(G_i - G_j) where j <= i, else 0: never above 1, since g <= 1.
  const at::Tensor above = at::ones({chunk, chunk}, q.options().dtype(at::kBool)).triu_(1);
  const at::Tensor between =
      (decay - decay.transpose(1, 2)).masked_fill_(above, -std::numeric_limits<float>::infinity()).exp_();
  const at::Tensor grown = decay.exp();  // exp(G)
  const at::Tensor system = at::bmm(keys, keys.transpose(1, 2)).mul_(between).mul_(writes).tril_(-1);
  // [U | W]: e = U - W S
  const at::Tensor written = at::linalg_solve_triangular(
      system, at::cat({in_chunks(v) * writes, keys * (writes * grown)}, 2), /*upper=*/false, /*left=*/true,
      /*unitriangular=*/true);
  const auto per_chunk = [&](const at::Tensor& x) { return x.view({sequences, chunks, chunk, x.size(2)}); };
  const at::Tensor values = per_chunk(written.narrow(2, 0, value_width).contiguous());
  const at::Tensor corrections = per_chunk(written.narrow(2, value_width, key_width).contiguous());
  const at::Tensor scores = per_chunk(at::bmm(queries, keys.transpose(1, 2)).mul_(between));
  const at::Tensor reads = per_chunk(queries * grown);
  const at::Tensor last = decay.narrow(1, chunk - 1, 1);
  const at::Tensor remembered = per_chunk(keys * (last - decay).exp_());
  const at::Tensor kept = last.exp().view({sequences, chunks, 1, 1});

  at::Tensor state = at::zeros({sequences, key_width, value_width}, q.options());
  at::Tensor out = at::empty({sequences, chunks * chunk, value_width}, q.options());
  for (int64_t c = 0; c < chunks; ++c) {
    const at::Tensor errors =
        at::baddbmm(values.select(1, c), corrections.select(1, c), state, /*beta=*/1, /*alpha=*/-1);
    out.narrow(1, c * chunk, chunk).copy_(at::bmm(reads.select(1, c), state).baddbmm_(scores.select(1, c), errors));
    if (c + 1 == chunks) break;
    state = at::baddbmm(state * kept.select(1, c), remembered.select(1, c).transpose(1, 2), errors);
  }
  return out.narrow(1, 0, positions);
}

GatedDelta::GatedDelta(const GatedDeltaConfig& config, GatedDeltaWeights weights, HookPointList& hook_points)
    : config_(config), weights_(std::move(weights)) {
  z_hook_ = hook_points.AddHeads("attn.hook_z", config.value_heads, config.value_heads * config.value_width,
                                 "The recurrence's result per value head after its norm and gate, before the output "
                                 "projection.");
}

bool GatedDelta::Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const {
  const int64_t batch = pass.batch(), positions = pass.positions();
  const int64_t key_heads = config_.key_heads, key_width = config_.key_width, keys = key_heads * key_width;
  const int64_t value_heads = config_.value_heads, value_width = config_.value_width;
  const int64_t per_key = value_heads / key_heads;
  const at::Tensor u = Linear(h, weights_.query_key_value).to(at::kFloat).view({batch, positions, -1});
  const at::Tensor mixed = at::silu(Convolve(u, weights_.convolution));
  const auto key_part = [&](int64_t part) {  // (B * H, T, P), each key head for its value heads
    const at::Tensor heads = mixed.narrow(2, part * keys, keys).view({batch, positions, key_heads, 1, key_width});
    return ByHead(
        UnitLength(heads).expand({-1, -1, -1, per_key, -1}).reshape({batch, positions, value_heads, key_width}));
  };
  const at::Tensor q = key_part(0) / std::sqrt(static_cast<double>(key_width)), k = key_part(1);
  const at::Tensor v =
      ByHead(mixed.narrow(2, 2 * keys, value_heads * value_width).view({batch, positions, value_heads, value_width}));
  const auto per_head = [&](const at::Tensor& rows) {  // (B * T, H) -> (B * H, T)
    return rows.view({batch, positions, value_heads}).transpose(1, 2).reshape({batch * value_heads, positions});
  };
  const at::Tensor beta = per_head(Linear(h, weights_.write).to(at::kFloat).sigmoid_());
  const at::Tensor log_decay = per_head(at::softplus(Linear(h, weights_.decay).to(at::kFloat) + weights_.decay_bias) *
                                        weights_.log_decay_rate.exp().neg());
  // (B * H, T, V) -> (B * T, H, V)
  const at::Tensor read = GatedDeltaRule(q, k, v, log_decay, beta, kChunk)
                              .view({batch, value_heads, positions, value_width})
                              .transpose(1, 2)
                              .reshape({batch * positions, value_heads, value_width});
  const at::Tensor gate =
      at::silu(Linear(h, weights_.gate).to(at::kFloat)).view({batch * positions, value_heads, value_width});
  at::Tensor z = Norm(read, config_.norm, weights_.norm)
                     .out.mul(gate)
                     .to(pass.dtype)
                     .reshape({batch * positions, value_heads * value_width});
  if (pass.taps(z_hook_, z)) return true;
  *out = Linear(z, weights_.out);
  return false;
}

}  // namespace hookline
