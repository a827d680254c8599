// Multi-head latent attention (DeepSeek V2 and V3): keys and values come from one compressed row per position.
//
// H heads; a head has P plain, R rotated and V value values. C = key_value_rank, norm over a whole compressed row:
//   q = norm(h Wqa) Wqb, or h Wqb                            hook_q (H (P + R)), per head plain, then rotated
//   c, r = h Wkva                                            (C), (R): r is the key's rotated part, for all heads
//   k, v = norm(c) Wkvb                                      hook_v (H V); per head P of the key, then V of the value
//   q, k = (plain, rotate(rotated))                          hook_rot_q, hook_rot_k (H (P + R))
//   z = softmax(scale q k^T, causal) v                       hook_z (H V)
//   out = z Wo
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_LATENT_ATTENTION_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_LATENT_ATTENTION_H_

#include "server/model/attention/attention.h"

namespace hookline {

class LatentAttention : public Attention {
 public:
  LatentAttention(const LatentAttentionConfig& config, LatentAttentionWeights weights, HookPointList& hook_points);

  bool Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const override;

 private:
  const LatentAttentionConfig config_;
  const LatentAttentionWeights weights_;
  int query_hook_ = kNoHookPoint, value_hook_ = kNoHookPoint;
  int rotated_query_hook_ = kNoHookPoint, rotated_key_hook_ = kNoHookPoint;
  int z_hook_ = kNoHookPoint;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_LATENT_ATTENTION_H_
