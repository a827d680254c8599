// Gated delta rule attention (Gated DeltaNet, as in Qwen 3.5): a recurrent state per head instead of keys.
//
// K key heads of P values, H value heads of V values, r = H / K; key head i serves value heads i r ... i r + r - 1.
//   u = h Wqkv, u'_t = silu(sum over i of w_i u_(t - kernel + 1 + i))       depthwise, zeros before the first token
//   q, k, v = u'; q and k divided per head by sqrt(sum x^2 + 1e-6), q also by sqrt(P)
//   beta = sigmoid(h Wb), g = exp(-exp(A) softplus(h Wa + bias))             one number per value head
//   S = g_t S; S = S + k_t beta_t (v_t - k_t^T S)^T; o_t = q_t^T S           S (P, V), zero before the first token
//   z = norm(o) silu(h Wz)                                                   hook_z (H V)
//   out = z Wo
//
// The recurrence runs in chunks (Yang et al., "Gated Delta Networks", section 3.3). Let G_i be the sum of log g up to i
// within a chunk, and S the state before the chunk. What each position writes, e, then solves
//   (1 + A) e = beta (v - exp(G) k S),   A_ij = beta_i exp(G_i - G_j) k_i k_j for j < i,
// so that everything but S is computed for all chunks at once, in float32.
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_GATED_DELTA_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_GATED_DELTA_H_

#include "server/model/attention/attention.h"

namespace hookline {

class GatedDelta : public Attention {
 public:
  GatedDelta(const GatedDeltaConfig& config, GatedDeltaWeights weights, HookPointList& hook_points);

  bool Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const override;

 private:
  const GatedDeltaConfig config_;
  const GatedDeltaWeights weights_;
  int z_hook_ = kNoHookPoint;
};

// The recurrence above over sequences (batch * heads, positions, ...): q and k (..., P), already of unit length and
// scaled, v (..., V), log_decay and beta (batch * heads, positions), all float32. Returns o in the shape of v. `chunk`
// positions are computed together; the chunk size changes only rounding.
at::Tensor GatedDeltaRule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                          const at::Tensor& beta, int64_t chunk);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_GATED_DELTA_H_
