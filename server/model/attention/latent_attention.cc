#include "server/model/attention/latent_attention.h"

#include <utility>

#include "server/model/layers.h"

namespace hookline {

LatentAttention::LatentAttention(const LatentAttentionConfig& config, LatentAttentionWeights weights,
                                 HookPointList& hook_points)
    : config_(config), weights_(std::move(weights)) {
  const int64_t keys = config.heads * (config.plain_width + config.rotated_width);
  const int64_t values = config.heads * config.value_width;
  query_hook_ = hook_points.AddHeads("attn.hook_q", config.heads, keys, "The query projection, before rotation.");
  value_hook_ =
      hook_points.AddHeads("attn.hook_v", config.heads, values, "The values, expanded from the compressed row.");
  rotated_query_hook_ =
      hook_points.AddHeads("attn.hook_rot_q", config.heads, keys,
                           "The query as attention uses it: each head's plain part, then its rotated part.");
  rotated_key_hook_ =
      hook_points.AddHeads("attn.hook_rot_k", config.heads, keys,
                           "The key as attention uses it: each head's plain part, then the shared rotated part.");
  z_hook_ = hook_points.AddHeads("attn.hook_z", config.heads, values,
                                 "Attention's result per head, before the output projection.");
}

bool LatentAttention::Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const {
  const int64_t batch = pass.batch(), positions = pass.positions(), heads = config_.heads;
  const int64_t plain = config_.plain_width, rotated = config_.rotated_width, width = plain + rotated;
  Taps& taps = pass.taps;

  at::Tensor q;
  if (taps.Need({query_hook_, rotated_query_hook_}, z_hook_)) {
    const bool compressed = weights_.query_down.weight.defined();
    q = compressed ? Norm(Linear(h, weights_.query_down), config_.rank_norm, weights_.query_norm).out : h;
    q = Linear(q, weights_.query_up);  // (B * T, H (P + R))
    if (taps(query_hook_, q)) return true;
  }
  at::Tensor expanded, v, k_rotated;
  if (taps.Need({value_hook_, rotated_key_hook_}, z_hook_)) {
    const at::Tensor down = Linear(h, weights_.key_value_down);  // (B * T, C + R)
    const at::Tensor latent = down.narrow(1, 0, config_.key_value_rank);
    k_rotated = down.narrow(1, config_.key_value_rank, rotated).view({batch, positions, 1, rotated});
    expanded = Linear(Norm(latent, config_.rank_norm, weights_.key_value_norm).out, weights_.key_value_up)
                   .view({batch, positions, heads, plain + config_.value_width});
    v = expanded.narrow(3, plain, config_.value_width);
    if (taps(value_hook_, v)) return true;
  }
  if (q.defined()) {
    q = q.view({batch, positions, heads, width});
    q = at::cat({q.narrow(3, 0, plain), pass.rotary.Rotate(config_.rotary, q.narrow(3, plain, rotated))}, 3);
    if (taps(rotated_query_hook_, q)) return true;
  }
  const at::Tensor turned = pass.rotary.Rotate(config_.rotary, k_rotated).expand({batch, positions, heads, rotated});
  at::Tensor k = at::cat({expanded.narrow(3, 0, plain), turned}, 3);
  if (taps(rotated_key_hook_, k)) return true;
  at::Tensor z = Attend(q, k, v, {config_.scale, /*soft_cap=*/0, /*reach=*/-1, /*sinks=*/{}}, pass.masks);
  if (taps(z_hook_, z)) return true;
  *out = Linear(z.reshape({-1, heads * config_.value_width}), weights_.out);
  return false;
}

}  // namespace hookline
